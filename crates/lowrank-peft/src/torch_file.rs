//! `pytorch_model.bin` and `adapter_model.bin`: what `torch.save` writes, a pickle beside the storages that it speaks of.
//!
//! Since torch 1.6 that is a zip archive whose members aren't compressed, before it was one stream.
//! Either way a storage lies in the file as plain elements, so that tensors are mapped where they
//! are. Reference: torch 2.15 `serialization.py`, `_save` and `_legacy_save`.

use std::{borrow::Cow, collections::HashMap, io::Cursor};

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

mod pickle;

use pickle::{Fault, Pickled, View};

type Result<T> = std::result::Result<T, Fault>;

/// Where a tensor's elements lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its first element's byte in the file.
    pub start: usize,
    /// Of what type its elements are.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Strides in elements, unless the elements lie one after the other.
    pub strides: Option<Vec<usize>>,
}

/// An error for what lies in the place of a file that wasn't fetched.
///
/// # Errors
/// What is wrong, in words.
pub fn check_fetched(bytes: &[u8]) -> Result<()> {
    match bytes.starts_with(b"version https://git-lfs") {
        true => Err("is a pointer of Git LFS, not the weights; `git lfs pull` gets them".into()),
        false => Ok(()),
    }
}

/// The tensors of a file by name.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn read(bytes: &[u8]) -> Result<Vec<(String, Stored)>> {
    if bytes.starts_with(b"PK\x03\x04") {
        return read_archive(bytes);
    }
    if bytes.starts_with(OLDER) {
        return read_stream(bytes);
    }
    // What else is called so may be a bare pickle, whose names are worth an error of their own.
    let fault = Pickled::read(bytes).err().unwrap_or_else(|| "a pickle without tensors".into());
    Err(format!("is neither of the two formats that torch writes: {fault}"))
}

/// `data.pkl` and, beside it, `data/KEY` for each storage.
fn read_archive(bytes: &[u8]) -> Result<Vec<(String, Stored)>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| e.to_string())?;
    let pickles = archive.file_names().filter_map(|name| {
        let name = name.ok()?;
        name.strip_suffix("data.pkl")
            .filter(|at| at.is_empty() || at.ends_with('/'))
            .map(str::to_owned)
    });
    let folder = pickles.min_by_key(String::len).ok_or("is an archive without `data.pkl`")?;
    let order = member(&mut archive, bytes, &format!("{folder}byteorder"));
    if order.is_ok_and(|(_, order)| order.starts_with(b"big")) {
        return Err(BIG_ENDIAN.into());
    }
    let (_, pickle) = member(&mut archive, bytes, &format!("{folder}data.pkl"))?;
    let pickled = Pickled::read(pickle)?;
    let mut places = HashMap::new();
    let mut tensors = Vec::new();
    for (name, view) in pickled.state_dict()? {
        let key = view.storage.key;
        let place = match places.get(key) {
            Some(place) => *place,
            None => {
                let (start, data) = member(&mut archive, bytes, &format!("{folder}data/{key}"))?;
                *places.entry(key).or_insert((start, data.len()))
            }
        };
        tensors.push((name.to_owned(), Stored::new(view, place)?));
    }
    Ok(tensors)
}

/// A member's first byte, and its bytes.
fn member<'a>(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    bytes: &'a [u8],
    name: &str,
) -> Result<(usize, &'a [u8])> {
    let wrong = |what: &dyn std::fmt::Display| format!("member `{name}`: {what}");
    let index = archive.index_for_name(name).ok_or_else(|| wrong(&"missing"))?;
    let file = archive.by_index_raw(index).map_err(|e| wrong(&e))?;
    if file.compression() != CompressionMethod::Stored || file.encrypted() {
        return Err(wrong(&"compressed or encrypted, which torch's aren't"));
    }
    let start = file.data_start().and_then(|start| usize::try_from(start).ok());
    let len = usize::try_from(file.size()).ok();
    let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
    let found = range.and_then(|range| Some((range.start, bytes.get(range)?)));
    found.ok_or_else(|| wrong(&"reaches beyond the end of the file"))
}

/// The pickled number with which the older format begins.
const OLDER: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const BIG_ENDIAN: &str = "was written on a big-endian machine, which isn't read";

/// After the number: version, machine, state dict and the storages' keys as pickles, then for each
/// key the number of elements and the elements.
fn read_stream(bytes: &[u8]) -> Result<Vec<(String, Stored)>> {
    let mut at = OLDER.len();
    let mut next = || {
        let pickled = Pickled::read(bytes.get(at..).unwrap_or_default())?;
        at += pickled.len;
        Ok::<_, Fault>(pickled)
    };
    next()?;
    if next()?.denies("little_endian") {
        return Err(BIG_ENDIAN.into());
    }
    let (pickled, keys) = (next()?, next()?);
    let tensors = pickled.state_dict()?;
    let sizes: HashMap<&str, usize> = tensors
        .iter()
        .map(|(_, view)| (view.storage.key, view.storage.dtype.bitsize() / 8))
        .collect();
    let mut places = HashMap::new();
    for key in keys.texts()? {
        // A storage whose elements no tensor tells the size of can't be stepped over.
        let size = sizes.get(key).ok_or_else(|| format!("no tensor lies in storage `{key}`"))?;
        let header = bytes.get(at..).and_then(|rest| rest.first_chunk());
        let len = usize::try_from(u64::from_le_bytes(*header.ok_or(CUT)?)).ok();
        let len = len.and_then(|len| len.checked_mul(*size)).ok_or(CUT)?;
        places.insert(key, (at + 8, len));
        let end = at.checked_add(8).and_then(|at| at.checked_add(len));
        at = end.filter(|end| *end <= bytes.len()).ok_or(CUT)?;
    }
    let stored = |(name, view): &(&str, &View<'_>)| {
        let place = places.get(view.storage.key).ok_or("a tensor's storage is missing")?;
        Ok(((*name).to_owned(), Stored::new(view, *place)?))
    };
    tensors.iter().map(stored).collect()
}

const CUT: &str = "ends in the middle of a storage";

impl Stored {
    /// A view into a storage whose bytes lie at `start`.
    fn new(view: &View<'_>, (start, len): (usize, usize)) -> Result<Self> {
        let size = view.storage.dtype.bitsize() / 8;
        let bytes = usize::try_from(view.storage.len).ok().and_then(|n| n.checked_mul(size));
        if bytes.is_none_or(|bytes| bytes > len) {
            let (key, elements) = (view.storage.key, view.storage.len);
            return Err(format!("storage `{key}` has less than {elements} elements"));
        }
        let offset = usize::try_from(view.offset).ok().and_then(|n| n.checked_mul(size));
        Ok(Self {
            start: offset.and_then(|n| n.checked_add(start)).ok_or(CUT)?,
            dtype: view.storage.dtype,
            shape: view.shape.clone(),
            strides: (!view.is_contiguous()).then(|| view.strides.clone()),
        })
    }

    /// The elements' bytes in order, from those of the whole file.
    ///
    /// # Errors
    /// When they reach beyond the file.
    pub fn elements<'a>(&self, file: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let size = self.dtype.bitsize() / 8;
        let bytes = file.get(self.start..).unwrap_or_default();
        let found = match &self.strides {
            Some(strides) => in_order(bytes, &self.shape, strides, size).map(Cow::Owned),
            None => {
                let count = self.shape.iter().try_fold(size, |n, d| n.checked_mul(*d));
                count.and_then(|count| bytes.get(..count)).map(Cow::Borrowed)
            }
        };
        found.ok_or_else(|| {
            format!("strides {:?} don't fit {:?}", self.strides.as_deref(), self.shape)
        })
    }
}

/// Most elements of a tensor whose elements are found by strides. One whose strides are zero needs
/// next to no room in its file, so that the file's length is no limit.
const MOST_COPIED: usize = 1 << 30;

/// Elements of `size` bytes, in order; `None` where the strides lead out of `bytes`.
fn in_order(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Option<Vec<u8>> {
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let count = count.filter(|n| *n <= MOST_COPIED)?;
    let mut copy = Vec::with_capacity(count.checked_mul(size)?);
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let start = index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>() * size;
        copy.extend_from_slice(bytes.get(start..start.checked_add(size)?)?);
        for (i, size) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *size {
                break;
            }
            *i = 0;
        }
    }
    Some(copy)
}
