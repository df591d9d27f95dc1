//! A decoder of the GPT family: embeddings, blocks of causal attention and an MLP, a final norm.
//! Papers: Radford et al., 2019 (GPT-2); arXiv:2204.06745 (parallel branches, rotary positions),
//! arXiv:2211.05100 (linear biases), arXiv:2205.01068 (narrow embeddings).

use lowrank_autograd::{
    Result, Value,
    ops::{self, KeyValues},
};
use lowrank_peft::{
    Pass,
    layers::{Embedding, Linear, Norm},
};

use super::positions::Places;
pub use super::{
    alibi::{Alibi, RoundedAlibi},
    causal_attention::{CausalAttention, causal_shape},
    feed_forward::FeedForward,
    head_norm::HeadNorm,
    positions::{LearnedPositions, Positions},
    projections::{Fused, Order, Projections},
    residual::{Parallel, ParallelDropout, Residual},
    rotary::Rotary,
};
use crate::{Cache, Context, DropoutSite, Input, Network, Sequences, network::run_blocks};

/// Embeddings, blocks and final norm.
#[derive(Clone, Debug)]
pub struct CausalDecoder {
    /// The tokens' table, which may be narrower than the blocks.
    pub embedding: Embedding,
    /// Whether segment ids are looked up in that table too.
    pub token_types: bool,
    /// From the embedding's width to that of the blocks.
    pub project_in: Option<Linear>,
    /// Where tokens stand.
    pub positions: Positions,
    /// After the embedding.
    pub embedding_norm: Option<Norm>,
    /// Dropout before the first block.
    pub dropout: Option<DropoutSite>,
    /// The blocks.
    pub blocks: Vec<CausalBlock>,
    /// After the last block.
    pub norm: Option<Norm>,
    /// From the width of the blocks to that of the embedding.
    pub project_out: Option<Linear>,
}

/// A block.
#[derive(Clone, Debug)]
pub struct CausalBlock {
    /// The attention.
    pub attention: CausalAttention,
    /// The MLP.
    pub mlp: FeedForward,
    /// How they are joined.
    pub wiring: Wiring,
}

/// How attention and MLP are joined.
#[derive(Clone, Debug)]
pub enum Wiring {
    /// First the one, then the other.
    Sequential([Residual; 2]),
    /// Beside each other.
    Parallel(Parallel),
}

impl CausalBlock {
    /// A block whose MLP reads what the attention has added to.
    pub fn sequential(
        (first, attention): (Residual, CausalAttention),
        (second, mlp): (Residual, FeedForward),
    ) -> Self {
        Self { attention, mlp, wiring: Wiring::Sequential([first, second]) }
    }

    /// A block whose attention and MLP read the same.
    pub fn parallel(wiring: Parallel, attention: CausalAttention, mlp: FeedForward) -> Self {
        Self { attention, mlp, wiring: Wiring::Parallel(wiring) }
    }

    fn forward(
        &self,
        x: &Value,
        places: &Places,
        sequences: &Sequences,
        cache: Option<&mut [KeyValues]>,
        pass: &Pass,
    ) -> Result<Value> {
        let attention = |x: &Value| self.attention.forward(x, places, sequences, cache, pass);
        let mlp = |x: &Value| self.mlp.forward(x, pass);
        match &self.wiring {
            Wiring::Sequential([first, second]) => {
                second.around(&first.around(x, pass, attention)?, pass, mlp)
            }
            Wiring::Parallel(both) => both.around(x, pass, attention, mlp),
        }
    }
}

impl CausalDecoder {
    /// A decoder of no more than these parts.
    pub fn new(
        embedding: Embedding,
        positions: Positions,
        blocks: Vec<CausalBlock>,
        norm: Option<Norm>,
    ) -> Self {
        Self {
            embedding,
            token_types: false,
            project_in: None,
            positions,
            embedding_norm: None,
            dropout: None,
            blocks,
            norm,
            project_out: None,
        }
    }

    /// What the first block reads.
    fn embed(&self, input: &Input, pass: &Pass) -> Result<Value> {
        let mut x = input.embed(&self.embedding, pass)?;
        if let Some(types) = input.token_types.as_ref().filter(|_| self.token_types) {
            x = ops::add(&x, &self.embedding.forward(types, pass)?)?;
        }
        if let Some(project) = &self.project_in {
            x = project.forward(&x, pass)?;
        }
        if let Positions::Learned(table) = &self.positions {
            x = ops::add(&x, &table.forward(&input.sequences, pass)?)?;
        }
        if let Some(norm) = &self.embedding_norm {
            x = norm.forward(&x, pass)?;
        }
        self.dropout.map_or(Ok(x.clone()), |dropout| dropout.forward(&x, pass))
    }
}

impl Network for CausalDecoder {
    fn forward(&self, input: &Input, context: Context<'_>, pass: &Pass) -> Result<Value> {
        let places = self.positions.places(&input.sequences)?;
        let (x, sequences) = (self.embed(input, pass)?, &input.sequences);
        let forward = move |block: &CausalBlock, x: &Value, s: &_, cache: Option<&mut _>, p: &_| {
            block.forward(x, &places, s, cache, p)
        };
        let x = run_blocks(&self.blocks, x, sequences, context.cache, pass, forward)?;
        let x = self.norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(&x, pass))?;
        self.project_out.as_ref().map_or(Ok(x.clone()), |project| project.forward(&x, pass))
    }

    fn new_cache(&self, sequences: usize) -> Cache {
        Cache::new(self.blocks.len(), sequences)
    }

    fn table(&self) -> &Embedding {
        &self.embedding
    }
}
