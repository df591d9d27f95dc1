//! Adapter files from before transformers 5, which hold `A` and `B` for each matrix of each expert.
//! Reference: PEFT 0.21.2 `transformers_weight_conversion.py`, `build_peft_weight_mapping`.
//!
//! With matrices `1..m` of an expert one below another, each with an adapter of rank `r`, the
//! whole has `A_e = [A_1; …; A_m]` and `B_e = diag(B_1, …, B_m)` of rank `m·r`.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use crate::{
    Modules, Result,
    adapter_names::TensorName,
    layers::{Layer, Stack},
    targets::TargetPlan,
};

/// Tensors of an adapter file by name.
type Tensors = HashMap<String, Tensor>;

/// Puts the adapters of whole parameters in the place of those of single matrices, where a file has
/// these; and those of routers under the name that the module has now.
pub(crate) fn stack_experts(
    modules: &Modules,
    plan: &TargetPlan,
    tensors: &mut Tensors,
) -> Result<()> {
    for path in plan.targets.keys() {
        match modules.layer(path) {
            Some(Layer::Stack(stack)) => stack_parts(stack, plan.adapter_path(path), tensors)?,
            Some(Layer::Linear(linear)) => {
                for old in linear.weight().stored()? {
                    rename(old.name.strip_suffix(".weight").unwrap_or_default(), path, tensors);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn stack_parts(stack: &Stack, place: String, tensors: &mut Tensors) -> Result<()> {
    let [experts, ..] = stack.dims();
    if let Some(parts) = take(stack, TensorName::LoraA, tensors) {
        let name = TensorName::LoraA(place.clone()).to_string();
        tensors.insert(name, Tensor::cat(&parts, 0)?);
    }
    if let Some(parts) = take(stack, TensorName::LoraB, tensors) {
        tensors.insert(TensorName::LoraB(place).to_string(), beside(&parts, experts)?);
    }
    Ok(())
}

/// The tensors of every matrix, an expert's next to each other, if the file has them all.
fn take(
    stack: &Stack,
    part: fn(String) -> TensorName,
    tensors: &mut Tensors,
) -> Option<Vec<Tensor>> {
    let names: Vec<String> =
        stack.layers().iter().map(|layer| part(layer.clone()).to_string()).collect();
    if names.is_empty() || !names.iter().all(|name| tensors.contains_key(name)) {
        return None;
    }
    names.iter().map(|name| tensors.remove(name)).collect()
}

/// `[out, r·experts]` of the matrices' `B`: diagonal within an expert, and its columns as far apart
/// as there are experts.
fn beside(parts: &[Tensor], experts: usize) -> Result<Tensor> {
    let each = parts.len() / experts.max(1);
    let of_expert = |parts: &[Tensor]| -> Result<Tensor> {
        let mut rows = Vec::with_capacity(each);
        for (i, part) in parts.iter().enumerate() {
            let part = part.to_dtype(DType::F32)?;
            let width = part.dim(1)?;
            rows.push(part.pad_with_zeros(1, i * width, (each - 1 - i) * width)?);
        }
        Ok(Tensor::cat(&rows, 0)?)
    };
    let experts = parts.chunks(each.max(1)).map(of_expert).collect::<Result<Vec<_>>>()?;
    let whole = Tensor::stack(&experts, 2)?;
    Ok(whole.flatten_from(1)?.contiguous()?)
}

fn rename(old: &str, path: &str, tensors: &mut Tensors) {
    if old == path {
        return;
    }
    let parts: [fn(String) -> TensorName; 2] = [TensorName::LoraA, TensorName::LoraB];
    for part in parts {
        if let Some(tensor) = tensors.remove(&part(old.to_owned()).to_string()) {
            tensors.insert(part(path.to_owned()).to_string(), tensor);
        }
    }
}
