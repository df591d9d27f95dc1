//! AdamW's update.

use candle_core::Tensor;

use super::on;
use crate::{Parameter, Result, kernels::adamw::AdamWUpdate};

/// Updates `parameter` and its moments.
pub(crate) fn update(
    n: AdamWUpdate,
    parameter: &Parameter,
    gradient: &Tensor,
    [mean, square]: [&mut Tensor; 2],
) -> Result<()> {
    let p = parameter.data();
    let g = on(p.device(), gradient)?;
    on_gpu!(p, update(n, &p, &g, [mean, square]));
    *mean = (&*mean + ((&g - &*mean)? * f64::from(n.new_mean))?)?;
    *square = ((&*square * f64::from(n.old_square))? + (g.sqr()? * f64::from(n.new_square))?)?;
    let root = ((square.sqrt()? / f64::from(n.root))? + f64::from(n.epsilon))?;
    let change = ((&*mean / root)? * f64::from(n.size))?;
    parameter.set(&((p * f64::from(n.keep))? - change)?)
}
