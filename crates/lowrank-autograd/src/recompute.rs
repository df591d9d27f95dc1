//! Activation checkpointing (arXiv:1604.06174): a block keeps its inputs alone and is run again
//! when the backward pass reaches it.

use crate::{
    Gradients, Result, Value,
    tape::{self, Node},
};

/// Runs `block` on `inputs` without recording it; the backward pass runs it once more.
///
/// The first run costs no more than one of an untrained block: its inputs are marked, what they
/// lead to isn't recorded and saves nothing, and only whether anything inside trains is found out.
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
    if inputs.iter().any(|v| v.is_unrecorded()) {
        // Inside a block of the same kind, which will be run again itself.
        return block(&inputs.iter().map(|v| (*v).clone()).collect::<Vec<_>>());
    }
    let unrecorded: Vec<Value> = inputs.iter().map(|v| v.unrecorded()).collect();
    let output = block(&unrecorded)?;
    drop(unrecorded);
    if !output.needs_gradient() {
        return Ok(output.detach());
    }
    let needs: Vec<bool> = inputs.iter().map(|v| v.needs_gradient()).collect();
    let kept: Vec<Value> = inputs.iter().map(|v| v.detach()).collect();
    let backward = Box::new(move |dy, gradients: &mut Gradients| {
        let inputs = as_inputs(kept, &needs);
        let output = block(&inputs)?;
        let mut found = tape::backward(&output, dy, gradients)?;
        Ok(inputs.iter().map(|v| v.node().and_then(|n| found.remove(&n.number()))).collect())
    });
    Ok(output.at(Node::operation("recompute", inputs, backward)))
}

fn as_inputs(kept: Vec<Value>, needs: &[bool]) -> Vec<Value> {
    let on_tape = |v: &Value| v.at(Node::input());
    kept.into_iter().zip(needs).map(|(v, needed)| if *needed { on_tape(&v) } else { v }).collect()
}
