//! The tokens in whose places a picture's vectors go.

use crate::{Architecture, Config, Result, arch::Beside};

/// The tokens in whose places a picture's vectors go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageTokens {
    /// Each one's id.
    pub id: u32,
    /// How many stand for a picture.
    pub count: usize,
}

impl ImageTokens {
    /// Those of a model; none where it sees no pictures.
    ///
    /// # Errors
    /// When the config names no architecture or no such token.
    pub fn of(config: &Config) -> Result<Option<Self>> {
        let sees = Architecture::of(config)?.beside == Beside::Picture;
        sees.then(|| Self::read(config)).transpose()
    }

    pub(crate) fn read(c: &Config) -> Result<Self> {
        let id = c.token_id("image_token_index")?.or(c.token_id("image_token_id")?);
        let id = id.ok_or_else(|| c.wrong("image_token_index", "a token id"))?;
        Ok(Self { id, count: c.size_or("num_query_tokens", 32)? })
    }
}
