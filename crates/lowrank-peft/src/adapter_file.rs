//! The tensors of an adapter folder: `adapter_model.safetensors`, or the `adapter_model.bin` that
//! older versions of PEFT wrote.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::MappedFile;

use crate::{
    Error, Result,
    torch_file::{self, Stored},
};

/// Name of the file with an adapter's tensors.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";

/// Name of the file that older versions of PEFT wrote.
const OLDER_WEIGHTS_NAME: &str = "adapter_model.bin";

/// The tensors of an adapter folder by name, and the file that they are from: where there are both,
/// safetensors, as in PEFT.
///
/// # Errors
/// When there is neither file, or it isn't what its format says.
pub fn adapter_tensors(folder: &Path) -> Result<(PathBuf, HashMap<String, Tensor>)> {
    let [path, older] = [WEIGHTS_NAME, OLDER_WEIGHTS_NAME].map(|name| folder.join(name));
    if path.is_file() {
        return match candle_core::safetensors::load(&path, &Device::Cpu) {
            Ok(tensors) => Ok((path, tensors)),
            Err(source) => Err(Error::Safetensors { path, source }),
        };
    }
    if !older.is_file() {
        let (path, hint) = (folder.to_owned(), "; nor has it an `adapter_model.bin`");
        return Err(Error::NotAnAdapter { path, missing: WEIGHTS_NAME, hint });
    }
    let file = MappedFile::open(&older)?;
    match read_older(file.bytes()) {
        Ok(tensors) => Ok((older, tensors)),
        Err(what) => Err(Error::TorchFile { path: older, what }),
    }
}

fn read_older(bytes: &[u8]) -> std::result::Result<HashMap<String, Tensor>, String> {
    let tensor = |(name, stored): (String, Stored)| {
        let wrong = |what: &dyn std::fmt::Display| format!("tensor `{name}`: {what}");
        let elements = stored.elements(bytes).map_err(|what| wrong(&what))?;
        let dtype = DType::try_from(stored.dtype).map_err(|error| wrong(&error))?;
        let tensor = Tensor::from_raw_buffer(&elements, dtype, &stored.shape, &Device::Cpu);
        let tensor = tensor.map_err(|error| wrong(&error))?;
        Ok((name, tensor))
    };
    torch_file::check_fetched(bytes)?;
    torch_file::read(bytes)?.into_iter().map(tensor).collect()
}
