//! The machine that a pickle is a program for, with the instructions that torch writes.

use std::collections::HashMap;

use super::{Id, NAMES, Name, Object, Pickled, Result, Storage, View, shown};

/// Objects that one pickle may build: some hundred times those of the largest models.
const MOST_OBJECTS: usize = 1 << 24;

/// torch's own limit is 64.
const MOST_DIMENSIONS: usize = 64;

/// Runs the pickle at the beginning of `bytes`.
pub(super) fn run(bytes: &[u8]) -> Result<Pickled<'_>> {
    let mut machine = Machine { bytes, ..Machine::default() };
    while !machine.step()? {}
    let result = machine.pop()?;
    Ok(Pickled { objects: machine.objects, result, len: machine.at })
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    objects: Vec<Object<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at which marks lie.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Does one instruction; true at the last.
    fn step(&mut self) -> Result<bool> {
        let at = self.at;
        let [instruction] = self.array()?;
        match instruction {
            0x80 => drop(self.array::<1>()?), // protocol
            0x95 => drop(self.array::<8>()?), // frame
            b'.' => return Ok(true),
            b'N' => self.push(Object::Nothing)?,
            0x88 => self.push(Object::Number(1))?,
            0x89 => self.push(Object::Number(0))?,
            b'K' => self.number::<1>()?,
            b'M' => self.number::<2>()?,
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Object::Number(number.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                self.array::<8>()?;
                self.push(Object::Nothing)?;
            }
            b'X' => self.text::<4>()?,
            0x8c => self.text::<1>()?,
            b')' => self.push(Object::Tuple(Vec::new()))?,
            b']' => self.push(Object::List(Vec::new()))?,
            b'}' => self.push(Object::Dict(Vec::new()))?,
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let items = self.since_mark()?;
                self.push(Object::Tuple(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(instruction - 0x84))?;
                self.push(Object::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(&pair)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set_items(&items)?;
            }
            b'q' => self.memorize::<1>()?,
            b'r' => self.memorize::<4>()?,
            0x94 => {
                let place = u32::try_from(self.memo.len()).map_err(|e| e.to_string())?;
                self.memo.insert(place, self.top()?);
            }
            b'h' => self.recall::<1>()?,
            b'j' => self.recall::<4>()?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => self.name_on_stack()?,
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => drop(self.pop_attributes()?),
            other => {
                return Err(format!("byte {at}: instruction {other:#04x} isn't one of torch's"));
            }
        }
        Ok(false)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("ends in the middle of its pickle")?;
        let taken = self.bytes.get(self.at..end).unwrap_or_default();
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An unsigned number of `N` bytes, at most four.
    fn unsigned<const N: usize>(&mut self) -> Result<u32> {
        Ok(self.take(N)?.iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte)))
    }

    fn number<const N: usize>(&mut self) -> Result<()> {
        let number = self.unsigned::<N>()?;
        self.push(Object::Number(number.into()))
    }

    /// A signed number of any length; those of a file of tensors have at most eight bytes.
    fn long(&mut self) -> Result<()> {
        let [len] = self.array()?;
        let bytes = self.take(len.into())?;
        if bytes.len() > 8 {
            return Err(format!("a number of {len} bytes is none that tensors need"));
        }
        let unused = 64 - 8 * bytes.len() as u32;
        let value = bytes.iter().rev().fold(0i64, |n, byte| n << 8 | i64::from(*byte));
        let signed = value.checked_shl(unused).map_or(0, |n| n >> unused);
        self.push(Object::Number(signed))
    }

    fn text<const N: usize>(&mut self) -> Result<()> {
        let len = self.unsigned::<N>()?;
        let bytes = self.take(usize::try_from(len).map_err(|e| e.to_string())?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a text isn't UTF-8")?;
        self.push(Object::Text(text))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(len.ok_or("ends in the middle of a name")?)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a name isn't UTF-8".into())
    }

    fn push(&mut self, object: Object<'a>) -> Result<()> {
        if self.objects.len() >= MOST_OBJECTS {
            return Err(format!("builds more than {MOST_OBJECTS} objects"));
        }
        self.stack.push(self.objects.len());
        self.objects.push(object);
        Ok(())
    }

    /// The height below which an instruction must not reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or_default()
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let height = self.stack.len().checked_sub(count).filter(|left| *left >= self.floor());
        Ok(self.stack.split_off(height.ok_or("an instruction finds too few objects")?))
    }

    fn pop(&mut self) -> Result<Id> {
        self.pop_many(1)?.first().copied().ok_or_else(|| "no object is left".into())
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| "no object is left".into())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let height = self.marks.pop().filter(|height| *height <= self.stack.len());
        Ok(self.stack.split_off(height.ok_or("a mark is missing")?))
    }

    fn top_object(&mut self) -> Result<&mut Object<'a>> {
        let top = self.top()?;
        self.objects.get_mut(top).ok_or_else(|| "no object is left".into())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        match self.top_object()? {
            Object::List(list) => list.extend(items),
            _ => return Err("appends to something else than a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let Object::Dict(dict) = self.top_object()? else {
            return Err("sets an item of something else than a dictionary".into());
        };
        for pair in items.chunks(2) {
            let &[key, value] = pair else { return Err("a key has no value".into()) };
            dict.push((key, value));
        }
        Ok(())
    }

    fn memorize<const N: usize>(&mut self) -> Result<()> {
        let place = self.unsigned::<N>()?;
        self.memo.insert(place, self.top()?);
        Ok(())
    }

    fn recall<const N: usize>(&mut self) -> Result<()> {
        let place = self.unsigned::<N>()?;
        let id = self.memo.get(&place).copied();
        self.stack.push(id.ok_or_else(|| format!("recalls object {place}, which isn't there"))?);
        Ok(())
    }

    fn name(&mut self, module: &str, name: &str) -> Result<()> {
        let full = format!("{module}.{name}");
        let Some((_, known)) = NAMES.iter().find(|(own, _)| *own == full) else {
            return Err(format!(
                "asks for the Python name `{}`, which is none that tensors are made of; nothing \
                 was executed and nothing is loaded",
                shown(&full)
            ));
        };
        self.push(Object::Name(*known))
    }

    /// A name whose parts are texts on the stack, as newer pickles have it.
    fn name_on_stack(&mut self) -> Result<()> {
        let parts = self.pop_many(2)?;
        match self.all(&parts).as_slice() {
            [Object::Text(module), Object::Text(name)] => {
                let (module, name) = (*module, *name);
                self.name(module, name)
            }
            _ => Err("a name isn't a text".into()),
        }
    }

    fn get(&self, id: Id) -> &Object<'a> {
        self.objects.get(id).unwrap_or(&Object::Nothing)
    }

    fn all(&self, ids: &[Id]) -> Vec<&Object<'a>> {
        ids.iter().map(|id| self.get(*id)).collect()
    }

    /// The parts of a tuple; none of anything else. A tuple longer than any that is read here
    /// isn't looked through.
    fn tuple(&self, id: Id) -> Vec<&Object<'a>> {
        match self.get(id) {
            Object::Tuple(items) if items.len() <= MOST_DIMENSIONS => self.all(items),
            _ => Vec::new(),
        }
    }

    /// Attributes of an object, which here are none that matter: a state dict's `_metadata`.
    fn pop_attributes(&mut self) -> Result<Id> {
        let attributes = self.pop()?;
        match self.top_object()? {
            Object::Dict(_) | Object::View(_) => Ok(attributes),
            _ => Err("sets attributes of something else than a dictionary".into()),
        }
    }

    /// A persistent id: `("storage", class, key, device, elements)`, in the older format with a
    /// sixth part that says whether it views another one.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let parts = self.tuple(id);
        let (parts, views) = parts.split_at_checked(5).unwrap_or_default();
        let [
            Object::Text("storage"),
            Object::Name(Name::StorageOf(dtype)),
            Object::Text(key),
            Object::Text(_),
            Object::Number(len),
        ] = parts
        else {
            return Err("a storage isn't described as torch does it".into());
        };
        if !matches!(views, [] | [Object::Nothing]) {
            return Err("a storage views another one, as before torch 0.4".into());
        }
        let len = u64::try_from(*len).map_err(|_| "a storage has less than no elements")?;
        let storage = Storage { key, dtype: *dtype, len };
        self.push(Object::Storage(storage))
    }

    fn call(&mut self) -> Result<()> {
        let both = self.pop_many(2)?;
        let &[function, arguments] = both.as_slice() else { return Err("calls nothing".into()) };
        let Object::Name(name) = *self.get(function) else {
            return Err("calls something else than a name".into());
        };
        let result = match name {
            Name::OrderedDict if self.is_empty(arguments) => Object::Dict(Vec::new()),
            Name::RebuildTensor => self.view(arguments)?,
            Name::RebuildParameter => match self.tuple(arguments).first() {
                Some(Object::View(view)) => Object::View(view.clone()),
                _ => return Err("a parameter isn't a tensor".into()),
            },
            // (function, class, arguments of the function, attributes)
            Name::RebuildFromType => match self.get(arguments) {
                Object::Tuple(ids) => match *ids.as_slice() {
                    [function, _, arguments, _]
                        if matches!(self.get(function), Object::Name(Name::RebuildTensor)) =>
                    {
                        self.view(arguments)?
                    }
                    _ => return Err("a tensor is rebuilt in a way that isn't known".into()),
                },
                _ => return Err("a tensor is rebuilt from nothing".into()),
            },
            _ => return Err("calls something that is no function".into()),
        };
        self.push(result)
    }

    fn is_empty(&self, arguments: Id) -> bool {
        matches!(self.get(arguments), Object::Tuple(items) if items.is_empty())
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, …)`.
    fn view(&self, arguments: Id) -> Result<Object<'a>> {
        let Object::Tuple(ids) = self.get(arguments) else {
            return Err("a tensor isn't described as torch does it".into());
        };
        let &[storage, offset, shape, strides, ..] = ids.as_slice() else {
            return Err("a tensor isn't described as torch does it".into());
        };
        match (self.get(storage), self.get(offset), self.sizes(shape)?, self.sizes(strides)?) {
            (Object::Storage(storage), Object::Number(offset), shape, strides)
                if shape.len() == strides.len() =>
            {
                let offset = u64::try_from(*offset).map_err(|_| "a tensor begins before 0")?;
                let view = View { storage: storage.clone(), offset, shape, strides };
                view.check()?;
                Ok(Object::View(view))
            }
            _ => Err("a tensor isn't described as torch does it".into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        let wrong = || "a tensor's shape isn't a tuple of numbers".to_owned();
        let Object::Tuple(items) = self.get(id) else { return Err(wrong()) };
        if items.len() > MOST_DIMENSIONS {
            return Err(format!("a tensor has {} dimensions", items.len()));
        }
        let size = |id: &Id| match self.get(*id) {
            Object::Number(n) => usize::try_from(*n).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        items.iter().map(size).collect()
    }
}
