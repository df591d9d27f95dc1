//! Activation checkpointing (arXiv:1604.06174): a block keeps its inputs alone and is run again
//! when the backward pass reaches it.

use crate::{
    Gradients, Result, Value,
    tape::{self, Node},
};

/// Runs `block` on `inputs` without keeping its inner tensors; the backward pass runs it once more.
///
/// `block` must be a pure function of its inputs and of parameters: randomness from
/// [`crate::Key`] is (dropout masks come out the same), a generator with a state isn't.
///
/// # Errors
/// Whatever `block` returns.
pub fn recompute<F>(inputs: &[&Value], block: F) -> Result<Value>
where
    F: Fn(&[Value]) -> Result<Value> + Send + 'static,
{
    let needs: Vec<bool> = inputs.iter().map(|v| v.needs_gradient()).collect();
    let kept: Vec<Value> = inputs.iter().map(|v| v.detach()).collect();
    // The tape of this first run is dropped at once; it only tells whether anything inside trains.
    let output = block(&as_inputs(&kept, &needs))?;
    if !output.needs_gradient() {
        return Ok(output);
    }
    let backward = Box::new(move |dy, gradients: &mut Gradients| {
        let inputs = as_inputs(&kept, &needs);
        let output = block(&inputs)?;
        let mut found = tape::backward(&output, dy, gradients)?;
        Ok(inputs.iter().map(|v| v.node().and_then(|n| found.remove(&n.number()))).collect())
    });
    Ok(Value::with_node(output.data().clone(), Node::operation("recompute", inputs, backward)))
}

fn as_inputs(kept: &[Value], needs: &[bool]) -> Vec<Value> {
    kept.iter()
        .zip(needs)
        .map(|(v, needed)| match needed {
            true => Value::with_node(v.data().clone(), Node::input()),
            false => v.clone(),
        })
        .collect()
}
