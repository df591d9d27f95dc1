//! Embeddings, and layers that read their tables.

use lowrank_peft::{
    BaseTensor,
    layers::{Embedding, Layer, Linear, LinearKind},
};

use super::Builder;
use crate::Result;

impl Builder {
    /// An embedding, `[rows, dim]`.
    ///
    /// # Errors
    /// When the table is missing or misshapen.
    pub fn embedding(&self, name: &str, rows: usize, dim: usize) -> Result<Embedding> {
        self.padded_embedding(name, rows, dim, None)
    }

    /// An embedding whose row `padding` doesn't train, as transformers has it for most models'
    /// words.
    ///
    /// # Errors
    /// When the table is missing or misshapen.
    pub fn padded_embedding(
        &self,
        name: &str,
        rows: usize,
        dim: usize,
        padding: Option<u32>,
    ) -> Result<Embedding> {
        let path = self.join(name);
        Ok(self.register_embedding(&path, self.matrix(&path, &[rows, dim])?, padding))
    }

    /// An embedding that reads another one's table under a name of its own, on the terms of
    /// [`Builder::tied_linear`].
    ///
    /// # Errors
    /// When the file has a table of its own and it is misshapen.
    pub fn tied_embedding(&self, name: &str, table: &Embedding) -> Result<Embedding> {
        let path = self.join(name);
        Ok(self.register_embedding(&path, self.tied_weight(&path, table)?, table.padding()))
    }

    /// An embedding's table as a linear layer that is no module of its own; `name` is that of the
    /// module that stands for it where the model's output layer is asked for.
    pub fn table_as_linear(&self, name: &str, table: &Embedding) -> Linear {
        let weight = table.weight().tied(format!("{}.weight", self.join(name)));
        Linear::new(LinearKind::Linear, weight, None)
    }

    fn register_embedding(
        &self,
        path: &str,
        weight: BaseTensor,
        padding: Option<u32>,
    ) -> Embedding {
        let layer = Embedding::padded(weight, padding);
        self.built().modules.push(path, Layer::Embedding(layer.clone()));
        layer
    }
}
