//! `*.safetensors`, one file or shards by index, mapped into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::DType;
use lowrank_autograd::{MappedFile, Weight};
use safetensors::SafeTensors;

use crate::{Error, Result};

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
    start: usize,
    shape: Vec<usize>,
    dtype: safetensors::Dtype,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.file_name, self.dtype, self.shape)
    }
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Weights {
    /// Opens the weights of a model folder.
    ///
    /// # Errors
    /// When there are none, or a file isn't what its format says.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.join(SINGLE).is_file() {
            return Self::of_files(folder, [SINGLE.to_owned()].into());
        }
        if folder.join(INDEX).is_file() {
            return Self::of_index(folder);
        }
        let hint = match folder.join("pytorch_model.bin").exists() {
            true => "; `pytorch_model.bin` isn't read: save the model as safetensors",
            false => "",
        };
        Err(Error::NotAModel { path: folder.to_owned(), missing: SINGLE, hint })
    }

    fn of_index(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let index = crate::Config::read(&path)?;
        let map =
            index.object("weight_map")?.ok_or_else(|| index.wrong("weight_map", "an object"))?;
        let mut files = BTreeSet::new();
        for (tensor, file) in map.fields() {
            let name = file.as_str().ok_or_else(|| map.wrong(tensor, "a file name"))?;
            if !is_plain_name(name) {
                let file = path.display().to_string();
                return Err(Error::ShardName { file, name: name.to_owned() });
            }
            files.insert(name.to_owned());
        }
        let weights = Self::of_files(folder, files)?;
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

    fn of_files(folder: &Path, files: BTreeSet<String>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for file_name in files {
            let path = folder.join(&file_name);
            let file = MappedFile::open(&path)?;
            let wrong = |what: String| Error::Weights { file: path.display().to_string(), what };
            let (header, metadata) =
                SafeTensors::read_metadata(file.bytes()).map_err(|e| wrong(e.to_string()))?;
            let data = header.checked_add(8).ok_or_else(|| wrong("header too long".into()))?;
            for (name, info) in metadata.tensors() {
                let place = Place {
                    file: Arc::clone(&file),
                    file_name: file_name.clone(),
                    start: data + info.data_offsets.0,
                    shape: info.shape.clone(),
                    dtype: info.dtype,
                };
                if tensors.insert(name.clone(), place).is_some() {
                    return Err(wrong(format!("tensor `{name}` is in two shards")));
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), tensors })
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
        if place.shape != shape {
            let (found, must_be) = (place.shape.clone(), shape.to_vec());
            return Err(Error::TensorShape { file, name: name.to_owned(), found, must_be });
        }
        let dtype = match place.dtype {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::BF16 => DType::BF16,
            safetensors::Dtype::F16 => DType::F16,
            other => {
                let what = format!("tensor `{name}` is {other:?}; f32, bf16 and f16 are read");
                return Err(Error::Weights { file, what });
            }
        };
        Ok(Weight::mapped(&place.file, place.start, shape, dtype)?)
    }
}

/// A file name that can't lead out of its folder.
fn is_plain_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(plain)
}
