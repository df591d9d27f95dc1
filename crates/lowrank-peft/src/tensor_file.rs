//! Writing `*.safetensors`.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use safetensors::{Dtype, View};

use crate::Result;

/// A tensor as the safetensors crate wants it.
struct Bytes {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.data.as_slice().into()
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// A safetensors file of these tensors, with the metadata that transformers and PEFT expect.
///
/// # Errors
/// For a dtype other than f32, bf16, f16 and i64, or when serialization fails.
pub fn serialize(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        views.push((name.clone(), bytes_of(tensor)?));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn bytes_of(tensor: &Tensor) -> Result<Bytes> {
    let flat = tensor.flatten_all()?;
    let (dtype, data) = match tensor.dtype() {
        DType::F32 => (Dtype::F32, le_bytes(flat.to_vec1::<f32>()?, f32::to_le_bytes)),
        DType::BF16 => (Dtype::BF16, le_bytes(flat.to_vec1()?, half::bf16::to_le_bytes)),
        DType::F16 => (Dtype::F16, le_bytes(flat.to_vec1()?, half::f16::to_le_bytes)),
        DType::I64 => (Dtype::I64, le_bytes(flat.to_vec1::<i64>()?, i64::to_le_bytes)),
        found => {
            let (what, must_be) = ("a tensor", "f32, bf16, f16 or i64");
            return Err(
                lowrank_autograd::Error::Dtype { op: "serialize", what, found, must_be }.into()
            );
        }
    };
    Ok(Bytes { dtype, shape: tensor.dims().to_vec(), data })
}

fn le_bytes<T, const N: usize>(values: Vec<T>, bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.into_iter().flat_map(bytes).collect()
}
