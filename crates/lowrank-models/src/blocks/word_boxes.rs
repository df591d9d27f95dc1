//! Where words stand on a page: embeddings of the left, upper, right and lower edge of each word's
//! box, of its height and of its width. Paper: arXiv:1912.13318. Reference: transformers
//! `models/layoutlm/modeling_layoutlm.py`, `LayoutLMEmbeddings`.

use std::sync::Arc;

use lowrank_autograd::{Result, Value, ops};
use lowrank_peft::{Pass, layers::Embedding};

use crate::{Builder, Config, Input};

/// The tables of a page's coordinates.
#[derive(Clone, Debug)]
pub struct WordBoxes {
    x: Embedding,
    y: Embedding,
    h: Embedding,
    w: Embedding,
}

impl WordBoxes {
    /// The tables at `b`, of `max_2d_position_embeddings` rows each.
    ///
    /// # Errors
    /// When the field or a table is wrong.
    pub fn build(dim: usize, c: &Config, b: &Builder) -> crate::Result<Self> {
        let rows = c.size_or("max_2d_position_embeddings", 1024)?;
        let table = |axis| b.embedding(&format!("{axis}_position_embeddings"), rows, dim);
        Ok(Self { x: table("x")?, y: table("y")?, h: table("h")?, w: table("w")? })
    }

    /// The sum of the six vectors of every token's box, `[n, dim]`; without boxes all coordinates
    /// are 0.
    ///
    /// # Errors
    /// When a box is turned inside out or lies outside the page.
    pub fn forward(&self, input: &Input, pass: &Pass) -> Result<Value> {
        let n = input.ids.len();
        let boxes = input.bbox.as_ref().map_or_else(|| vec![[0; 4]; n].into(), Arc::clone);
        let inside_out = |b: &&[u32; 4]| b[2] < b[0] || b[3] < b[1];
        if let Some(found) = boxes.iter().find(inside_out) {
            let what = format!(
                "`bbox` holds {found:?}; a box is [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1"
            );
            return Err(candle_core::Error::Msg(what).into());
        }
        let read = |table: &Embedding, of: fn(&[u32; 4]) -> u32| {
            table.forward(&boxes.iter().map(of).collect(), pass)
        };
        let [left, upper] = [read(&self.x, |b| b[0])?, read(&self.y, |b| b[1])?];
        let [right, lower] = [read(&self.x, |b| b[2])?, read(&self.y, |b| b[3])?];
        let [h, w] = [read(&self.h, |b| b[3] - b[1])?, read(&self.w, |b| b[2] - b[0])?];
        let parts = [upper, right, lower, h, w];
        parts.iter().try_fold(left, |sum, part| ops::add(&sum, part))
    }
}
