//! The pickle in a file of torch's, read as data: a list of names and where each tensor lies.
//!
//! A pickle is a program that builds objects by calling what it names. Here it can only push
//! numbers, texts and containers, and "call" the few names of [`Name`], each of which stands for
//! something that is built right here; any other name ends the reading. Reference: CPython
//! `pickletools.py` for the instructions, torch 2.15 `_weights_only_unpickler.py` and `_utils.py`.
//!
//! candle-core's reader isn't used: it passes over names that it doesn't know, indexes arguments
//! without looking (a short tuple panics), copies an object each time it is recalled, so that a
//! file of some hundred bytes can ask for all memory, and drops nested objects by recursion. Objects
//! here lie in one list and refer to each other by place, which makes a recall a number, sharing and
//! cycles harmless, and memory proportional to the pickle.

use safetensors::Dtype;

mod machine;

/// What is wrong with a file, in words.
pub(super) type Fault = String;

type Result<T> = std::result::Result<T, Fault>;

/// A run of equal elements that several tensors may view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Its name in the file.
    pub(super) key: &'a str,
    pub(super) dtype: Dtype,
    /// Number of elements.
    pub(super) len: u64,
}

/// A view of a storage, in elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View<'a> {
    pub(super) storage: Storage<'a>,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// The place of an object in the list.
type Id = usize;

#[derive(Clone, Debug)]
enum Object<'a> {
    /// None, a float, or the result of a call that nothing asks for.
    Nothing,
    Number(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    Storage(Storage<'a>),
    View(View<'a>),
}

/// The names that a file of tensors needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    RebuildFromType,
    /// A class that [`Name::RebuildFromType`] is told.
    TensorClass,
    StorageOf(Dtype),
}

const NAMES: &[(&str, Name)] = &[
    ("collections.OrderedDict", Name::OrderedDict),
    ("torch._utils._rebuild_tensor", Name::RebuildTensor),
    ("torch._utils._rebuild_tensor_v2", Name::RebuildTensor),
    ("torch._utils._rebuild_parameter", Name::RebuildParameter),
    ("torch._tensor._rebuild_from_type_v2", Name::RebuildFromType),
    ("torch.Tensor", Name::TensorClass),
    ("torch.nn.parameter.Parameter", Name::TensorClass),
    ("torch.FloatStorage", Name::StorageOf(Dtype::F32)),
    ("torch.HalfStorage", Name::StorageOf(Dtype::F16)),
    ("torch.BFloat16Storage", Name::StorageOf(Dtype::BF16)),
    ("torch.DoubleStorage", Name::StorageOf(Dtype::F64)),
    ("torch.LongStorage", Name::StorageOf(Dtype::I64)),
    ("torch.IntStorage", Name::StorageOf(Dtype::I32)),
    ("torch.ShortStorage", Name::StorageOf(Dtype::I16)),
    ("torch.CharStorage", Name::StorageOf(Dtype::I8)),
    ("torch.ByteStorage", Name::StorageOf(Dtype::U8)),
    ("torch.BoolStorage", Name::StorageOf(Dtype::BOOL)),
];

/// What one pickle built.
#[derive(Debug)]
pub(super) struct Pickled<'a> {
    objects: Vec<Object<'a>>,
    result: Id,
    /// Bytes up to the end of the pickle.
    pub(super) len: usize,
}

impl<'a> Pickled<'a> {
    /// Reads the pickle at the beginning of `bytes`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        machine::run(bytes)
    }

    fn object(&self, id: Id) -> Option<&Object<'a>> {
        self.objects.get(id)
    }

    /// The tensors of a state dict by name.
    pub(super) fn state_dict(&self) -> Result<Vec<(&'a str, &View<'a>)>> {
        let Some(Object::Dict(pairs)) = self.object(self.result) else {
            return Err("isn't a dictionary of tensors".into());
        };
        let entry = |(key, value): &(Id, Id)| match (self.object(*key), self.object(*value)) {
            (Some(Object::Text(name)), Some(Object::View(view))) => Ok((*name, view)),
            (Some(Object::Text(name)), _) => {
                Err(format!("isn't a dictionary of tensors: `{}` is something else", shown(name)))
            }
            _ => Err("isn't a dictionary of tensors: a key isn't a text".into()),
        };
        pairs.iter().map(entry).collect()
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>> {
        let wrong = || "a list of storages was expected".to_owned();
        let Some(Object::List(items)) = self.object(self.result) else { return Err(wrong()) };
        let text = |id: &Id| match self.object(*id) {
            Some(Object::Text(text)) => Ok(*text),
            _ => Err(wrong()),
        };
        items.iter().map(text).collect()
    }

    /// Whether a dictionary says `false` under `key`.
    pub(super) fn denies(&self, key: &str) -> bool {
        let Some(Object::Dict(pairs)) = self.object(self.result) else { return false };
        let is_key = |id: &Id| matches!(self.object(*id), Some(Object::Text(t)) if *t == key);
        let no = |id: &Id| matches!(self.object(*id), Some(Object::Number(0)));
        pairs.iter().any(|(k, v)| is_key(k) && no(v))
    }
}

impl View<'_> {
    /// An error if an element lies outside the storage.
    fn check(&self) -> Result<()> {
        let last = |n: u64, (size, stride): (&usize, &usize)| {
            (*size as u64 - 1).checked_mul(*stride as u64)?.checked_add(n)
        };
        let outside = "a tensor reaches beyond its storage";
        if self.shape.contains(&0) {
            return Ok(());
        }
        let mut pairs = self.shape.iter().zip(&self.strides);
        let last = pairs.try_fold(self.offset, last).ok_or(outside)?;
        if last < self.storage.len { Ok(()) } else { Err(outside.into()) }
    }

    /// Whether the elements lie one after the other.
    pub(super) fn is_contiguous(&self) -> bool {
        let mut step = Some(1);
        let fits = |(size, stride): (&usize, &usize)| {
            let fits = *size == 1 || step == Some(*stride);
            step = step.and_then(|n: usize| n.checked_mul(*size));
            fits
        };
        self.shape.contains(&0) || self.shape.iter().zip(&self.strides).rev().all(fits)
    }
}

/// A text of the file as a message may have it.
fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}
