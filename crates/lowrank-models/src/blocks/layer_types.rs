//! Which layers of a model see a window of keys and which see all. Reference: transformers 5
//! `configuration_utils.py`, `layer_types`.

use crate::{Config, Result};

/// Whether each layer slides: by `layer_types`, or, in a config without it, by `default`.
///
/// # Errors
/// When the list has another length or names a kind of layer that isn't implemented.
pub fn sliding_layers(c: &Config, default: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let layers = c.size("num_hidden_layers")?;
    let Some(types) = c.words("layer_types")? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        return Err(c.wrong("layer_types", format!("a list of {layers} names, one for each layer")));
    }
    let slides = |kind: &str| match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(c.not_implemented("layer_types", "full_attention, sliding_attention")),
    };
    types.into_iter().map(slides).collect()
}
