//! The tensors of a model folder, mapped into memory: `*.safetensors` or torch's `*.bin`, one file or
//! shards by index.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{MappedFile, Weight};
use lowrank_peft::torch_file::{self, Stored};
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// How and where a model's weights are held.
#[derive(Clone, Debug)]
pub struct WeightPlace {
    /// They are converted to this when they are loaded; `None` leaves them as they lie.
    pub dtype: Option<DType>,
    /// They are copied there, unless that is the processor's memory, where they stay mapped.
    pub device: Device,
}

/// One file, or all shards, of a folder: where each tensor lies.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    tensors: BTreeMap<String, Place>,
}

#[derive(Clone)]
struct Place {
    file: Arc<MappedFile>,
    file_name: String,
    stored: Stored,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.file_name, self.stored)
    }
}

/// A file format by the names that transformers gives its files.
struct Format {
    single: &'static str,
    index: &'static str,
    extension: &'static str,
    read: fn(&[u8]) -> std::result::Result<Listed, String>,
}

/// The tensors of a file by name.
type Listed = Vec<(String, Stored)>;

/// In transformers' order: a folder that has both is read as safetensors.
const FORMATS: [Format; 2] = [
    Format {
        single: "model.safetensors",
        index: "model.safetensors.index.json",
        extension: ".safetensors",
        read: read_safetensors,
    },
    Format {
        single: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        extension: ".bin",
        read: torch_file::read,
    },
];

impl Weights {
    /// Opens the weights of a model folder.
    ///
    /// # Errors
    /// When there are none, or a file isn't what its format says.
    pub fn open(folder: &Path) -> Result<Self> {
        for format in &FORMATS {
            if folder.join(format.single).is_file() {
                return Self::of_files(folder, format, [format.single.to_owned()].into());
            }
            if folder.join(format.index).is_file() {
                return Self::of_index(folder, format);
            }
        }
        let hint = "; nor has it shards with an index, or a `pytorch_model.bin`";
        Err(Error::NotAModel { path: folder.to_owned(), missing: "model.safetensors", hint })
    }

    fn of_index(folder: &Path, format: &Format) -> Result<Self> {
        let path = folder.join(format.index);
        let index = crate::Config::read(&path)?;
        let map =
            index.object("weight_map")?.ok_or_else(|| index.wrong("weight_map", "an object"))?;
        let mut files = BTreeSet::new();
        for (tensor, file) in map.fields() {
            let name = file.as_str().ok_or_else(|| map.wrong(tensor, "a file name"))?;
            if !is_plain_name(name, format.extension) {
                let (file, extension) = (path.display().to_string(), format.extension);
                return Err(Error::ShardName { file, name: name.to_owned(), extension });
            }
            files.insert(name.to_owned());
        }
        let weights = Self::of_files(folder, format, files)?;
        for (tensor, file) in map.fields() {
            let found = weights.tensors.get(tensor).map(|p| p.file_name.as_str());
            if found != file.as_str() {
                let what =
                    format!("tensor `{tensor}` isn't in the shard {file} that the index names");
                return Err(Error::Weights { file: path.display().to_string(), what });
            }
        }
        Ok(weights)
    }

    fn of_files(folder: &Path, format: &Format, files: BTreeSet<String>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file_name in files {
            let path = folder.join(&file_name);
            let file = MappedFile::open(&path)?;
            let wrong = |what: String| Error::Weights { file: path.display().to_string(), what };
            torch_file::check_fetched(file.bytes()).map_err(wrong)?;
            for (name, stored) in (format.read)(file.bytes()).map_err(wrong)? {
                let (file, file_name) = (Arc::clone(&file), file_name.clone());
                let place = Place { file, file_name, stored };
                if tensors.insert(name.clone(), place).is_some() {
                    return Err(wrong(format!("tensor `{name}` is there twice")));
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), tensors })
    }

    /// Has weights behind the first `limit` bytes of the files stay in memory only while they are
    /// read: see [`MappedFile::release_after_reading`].
    pub fn release_above(&self, limit: usize) {
        let files: BTreeMap<&str, &MappedFile> =
            self.tensors.values().map(|p| (p.file_name.as_str(), &*p.file)).collect();
        let mut before = 0;
        for file in files.into_values() {
            file.release_after_reading(limit.saturating_sub(before));
            before += file.bytes().len();
        }
    }

    /// The folder's name, for errors.
    pub fn folder(&self) -> String {
        self.folder.display().to_string()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor of the given shape.
    ///
    /// # Errors
    /// When it is missing, misshapen, or of a dtype that isn't a float.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let Some(place) = self.tensors.get(name) else {
            let looked_for = format!("`{name}`");
            return Err(Error::TensorMissing {
                folder: self.folder(),
                name: name.into(),
                looked_for,
            });
        };
        let file = self.folder.join(&place.file_name).display().to_string();
        let stored = &place.stored;
        if stored.shape != shape {
            let (found, must_be) = (stored.shape.clone(), shape.to_vec());
            return Err(Error::TensorShape { file, name: name.to_owned(), found, must_be });
        }
        let dtype = match stored.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                let what = format!("tensor `{name}` is {other:?}; f32, bf16 and f16 are read");
                return Err(Error::Weights { file, what });
            }
        };
        if stored.strides.is_none() {
            return Ok(Weight::mapped(&place.file, stored.start, shape, dtype)?);
        }
        let copy = stored.elements(place.file.bytes()).map_err(|what| {
            let what = format!("tensor `{name}`: {what}");
            Error::Weights { file, what }
        })?;
        let tensor = Tensor::from_raw_buffer(&copy, dtype, shape, &Device::Cpu)?;
        Ok(Weight::from_tensor(&tensor)?)
    }
}

fn read_safetensors(bytes: &[u8]) -> std::result::Result<Listed, String> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let data = header.checked_add(8).ok_or("header too long")?;
    let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (start, shape) = (data + info.data_offsets.0, info.shape.clone());
        (name, Stored { start, shape, dtype: info.dtype, strides: None })
    };
    Ok(metadata.tensors().into_iter().map(stored).collect())
}

/// A file name that can't lead out of its folder.
fn is_plain_name(name: &str, extension: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.ends_with(extension) && !name.starts_with('.') && name.chars().all(plain)
}
