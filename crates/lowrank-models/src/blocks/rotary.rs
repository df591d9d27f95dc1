//! Rotary embeddings and the ways in which they are stretched to longer contexts. Reference:
//! transformers 5 `modeling_rope_utils.py`; YaRN is arXiv:2309.00071, "dynamic" its NTK section.

use std::f64::consts::PI;

use candle_core::{Device, Tensor};
use lowrank_autograd::ops::Angles;

use crate::{Config, Result, Sequences};

/// How the frequencies differ from the plain ones.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    Default,
    Linear { factor: f64 },
    Dynamic { factor: f64, trained: usize },
    Yarn { low: f64, high: f64, factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, trained: f64 },
    Long { short: Vec<f64>, long: Vec<f64>, trained: f64 },
}

/// Frequencies of the rotated pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    theta: f64,
    /// Elements of a head that turn; even.
    dim: usize,
    scaling: Scaling,
    /// Factor of cosine and sine.
    attention_factor: f64,
}

impl Rotary {
    /// Plain frequencies `theta^(-2i/dim)` of the first `dim` elements of a head.
    pub fn plain(theta: f64, dim: usize) -> Self {
        Self { theta, dim, scaling: Scaling::Default, attention_factor: 1.0 }
    }

    /// Reads `rope_parameters`, or the older `rope_theta` and `rope_scaling`. `head_dim` is
    /// shortened by `partial_rotary_factor`.
    ///
    /// # Errors
    /// When a field is wrong or names a scaling that isn't implemented.
    pub fn from_config(c: &Config, head_dim: usize) -> Result<Self> {
        let old = c.object("rope_scaling")?.filter(|old| !old.fields().is_empty());
        let new = c.object("rope_parameters")?;
        let (given, key) = match (&old, &new) {
            (Some(old), _) => (old, "rope_scaling"),
            (None, Some(new)) => (new, "rope_parameters"),
            (None, None) => (c, "rope_theta"),
        };
        let theta = match given.number("rope_theta")? {
            Some(theta) => theta,
            None => c.number_or("rope_theta", 10_000.0)?,
        };
        if theta <= 0.0 {
            return Err(c.wrong(key, "an object with `rope_theta` above 0"));
        }
        let partial = match given.number("partial_rotary_factor")? {
            Some(partial) => partial,
            None => c.number_or("partial_rotary_factor", 1.0)?,
        };
        let dim = (head_dim as f64 * partial) as usize;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            let must_be = "such that an even number of a head's elements turn";
            return Err(match given.get("partial_rotary_factor") {
                Some(_) => given.wrong("partial_rotary_factor", must_be),
                None if partial != 1.0 => c.wrong("partial_rotary_factor", must_be),
                None => c.wrong("head_dim", must_be),
            });
        }
        let kind = match (new.is_some() || old.is_some(), given.word("rope_type")?) {
            (false, _) => "default",
            (true, Some(kind)) => kind,
            (true, None) => given.word("type")?.unwrap_or("default"),
        };
        let plain = Self::plain(theta, dim);
        match kind {
            "default" => Ok(plain),
            "linear" => Ok(Self { scaling: Scaling::Linear { factor: factor(given)? }, ..plain }),
            "dynamic" => {
                let trained = c.size("max_position_embeddings")?;
                Ok(Self { scaling: Scaling::Dynamic { factor: factor(given)?, trained }, ..plain })
            }
            "llama3" => {
                let number = |k: &str| given.number(k)?.ok_or_else(|| given.wrong(k, "a number"));
                let scaling = Scaling::Llama3 {
                    factor: factor(given)?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    trained: trained(c, given)?,
                };
                Ok(Self { scaling, ..plain })
            }
            "yarn" => plain.yarn(c, given),
            "longrope" => plain.long(c, given),
            _ => {
                let named = if given.get("rope_type").is_some() { "rope_type" } else { "type" };
                Err(given
                    .not_implemented(named, "default, linear, dynamic, yarn, llama3, longrope"))
            }
        }
    }

    /// [`Rotary::from_config`] for models whose code turns whole heads, whatever the config says.
    ///
    /// # Errors
    /// When a field is wrong, or asks for a part of a head.
    pub fn whole(c: &Config, head_dim: usize) -> Result<Self> {
        const PARTIAL: &str = "partial_rotary_factor";
        let rotary = Self::from_config(c, head_dim)?;
        if rotary.dim == head_dim {
            return Ok(rotary);
        }
        let places = [c.object("rope_scaling")?, c.object("rope_parameters")?];
        let place = places.into_iter().flatten().find(|place| place.get(PARTIAL).is_some());
        Err(place.as_ref().unwrap_or(c).not_implemented(PARTIAL, "1"))
    }

    fn yarn(self, c: &Config, given: &Config) -> Result<Self> {
        let trained = trained(c, given)?;
        let factor = factor_beyond(trained, c, given)?;
        let scale_of =
            |factor: f64, m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let attention_factor = match given.number("attention_factor")? {
            Some(factor) => factor,
            None => match (given.number("mscale")?, given.number("mscale_all_dim")?) {
                (Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
                    scale_of(factor, m) / scale_of(factor, all)
                }
                _ => scale_of(factor, 1.0),
            },
        };
        let (dim, base) = (self.dim as f64, self.theta);
        let pair = |turns: f64| dim * (trained / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        // A 0 is as good as none.
        let turns = |key, default| -> Result<f64> {
            Ok(given.number(key)?.filter(|turns| *turns != 0.0).unwrap_or(default))
        };
        let (mut low, mut high) = (pair(turns("beta_fast", 32.0)?), pair(turns("beta_slow", 1.0)?));
        if given.switch_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        Ok(Self { scaling: Scaling::Yarn { low, high, factor }, attention_factor, ..self })
    }

    /// LongRoPE (arXiv:2402.13753): a divisor of its own for each frequency, one of two sets by the
    /// sequence's length.
    fn long(self, c: &Config, given: &Config) -> Result<Self> {
        let trained = trained(c, given)?;
        let factor = factor_beyond(trained, c, given)?;
        let attention_factor = match given.number("attention_factor")? {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None if trained > 1.0 => (1.0 + factor.ln() / trained.ln()).sqrt(),
            None => return Err(c.wrong(TRAINED, "at least 2")),
        };
        let pairs = self.dim / 2;
        let divisors = |key| match given.positives(key)? {
            list if list.len() == pairs => Ok(list),
            _ => Err(given.wrong(key, format!("a list of {pairs} numbers above 0"))),
        };
        let (short, long) = (divisors("short_factor")?, divisors("long_factor")?);
        Ok(Self { scaling: Scaling::Long { short, long, trained }, attention_factor, ..self })
    }

    /// One frequency for each pair, for a sequence of `extent` tokens.
    fn frequencies(&self, extent: usize) -> Vec<f64> {
        let dim = self.dim as f64;
        let theta = match &self.scaling {
            Scaling::Dynamic { factor, trained } => {
                let (extent, trained) = (extent.max(*trained) as f64, *trained as f64);
                self.theta * (factor * extent / trained - (factor - 1.0)).powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        let plain = (0..self.dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim));
        match &self.scaling {
            Scaling::Long { short, long, trained } => {
                let divisors = if extent as f64 > *trained { long } else { short };
                plain.zip(divisors).map(|(plain, divisor)| plain / divisor).collect()
            }
            _ => plain.enumerate().map(|(i, plain)| self.scaled(i as f64, plain)).collect(),
        }
    }

    fn scaled(&self, pair: f64, plain: f64) -> f64 {
        match &self.scaling {
            Scaling::Default | Scaling::Dynamic { .. } | Scaling::Long { .. } => plain,
            Scaling::Linear { factor } => plain / factor,
            Scaling::Yarn { low, high, factor } => {
                let stretched = ((pair - low) / (high - low)).clamp(0.0, 1.0);
                plain / factor * stretched + plain * (1.0 - stretched)
            }
            Scaling::Llama3 { factor, low, high, trained } => {
                let wavelength = 2.0 * PI / plain;
                if wavelength < trained / high {
                    plain
                } else if wavelength > trained / low {
                    plain / factor
                } else {
                    let smooth = (trained / wavelength - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
        }
    }

    /// The angles of every token of a batch.
    ///
    /// # Errors
    /// Those of the allocation.
    pub fn angles(&self, sequences: &Sequences) -> lowrank_autograd::Result<Angles> {
        let half = self.dim / 2;
        let n = sequences.tokens();
        let (mut cos, mut sin) = (Vec::with_capacity(n * half), Vec::with_capacity(n * half));
        let mut positions = sequences.positions.iter();
        for (&length, &extent) in sequences.lengths().iter().zip(&sequences.extents) {
            let frequencies: Vec<f32> =
                self.frequencies(extent).iter().map(|f| *f as f32).collect();
            for &position in positions.by_ref().take(length) {
                for frequency in &frequencies {
                    // The product is rounded to f32 as in transformers.
                    let angle = position as f32 * frequency;
                    cos.push((f64::from(angle).cos() * self.attention_factor) as f32);
                    sin.push((f64::from(angle).sin() * self.attention_factor) as f32);
                }
            }
        }
        let table = |v| Tensor::from_vec(v, (n, half), &Device::Cpu);
        Ok(Angles::new(table(cos)?, table(sin)?))
    }
}

/// The field with the context that a model was trained with before it was stretched.
const TRAINED: &str = "original_max_position_embeddings";

/// What [`TRAINED`] says. A field beside the object counts for more than one in it.
fn trained(c: &Config, given: &Config) -> Result<f64> {
    let size = match (c.size_or_none(TRAINED)?, given.size_or_none(TRAINED)?) {
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => c.size("max_position_embeddings")?,
    };
    Ok(size as f64)
}

/// How far a context of `trained` tokens was stretched.
fn factor_beyond(trained: f64, c: &Config, given: &Config) -> Result<f64> {
    match given.get("factor") {
        Some(_) => factor(given),
        None => Ok(c.size("max_position_embeddings")? as f64 / trained),
    }
}

fn factor(given: &Config) -> Result<f64> {
    match given.number("factor")? {
        Some(factor) if factor >= 1.0 => Ok(factor),
        _ => Err(given.wrong("factor", "a number from 1 on")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_head_is_refused_where_the_code_turns_all_of_it() -> Result<()> {
        let read = |text: &str| Config::parse("config.json".to_owned(), text);
        assert_eq!(Rotary::whole(&read(r#"{"partial_rotary_factor": 1.0}"#)?, 8)?.dim, 8);
        for text in [
            r#"{"partial_rotary_factor": 0.5}"#,
            r#"{"rope_parameters": {"rope_theta": 10.0, "partial_rotary_factor": 0.5}}"#,
        ] {
            let c = read(text)?;
            assert_eq!(Rotary::from_config(&c, 8)?.dim, 4);
            let message = Rotary::whole(&c, 8).expect_err("a half turns").to_string();
            assert!(message.contains("partial_rotary_factor` is `0.5`"), "{message}");
        }
        Ok(())
    }
}
