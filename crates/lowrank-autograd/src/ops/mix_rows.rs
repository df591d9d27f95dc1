//! Weighted sums of rows: `y_t = Σ_j w_tj·x[place_tj]`, which brings what experts made of a token
//! together again. `dx[place_tj] = w_tj·dy_t`, bf16 if `x` is; `dw_tj = dy_t·x[place_tj]`.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    Error, Result, Value, composed,
    kept::Kept,
    kernels::{
        F32, Floats, dims2,
        elementwise::with_pieces,
        rows::{add_weighted, computed_rows, dot, gather, numbers, weighted},
        tensor,
    },
    profile,
};

const OP: &str = "mix_rows";

/// Rows of `x` `[m, d]`, `k` for each row of `weights` `[n, k]` as `places` lists them: `[n, d]`.
/// Each row of `x` has one place.
///
/// # Errors
/// When `places` doesn't list every row of `x` once, or as many as there are weights.
pub fn mix_rows(x: &Value, weights: &Value, places: &Arc<[usize]>) -> Result<Value> {
    let _time = profile::scope(OP);
    let (m, d) = dims2(OP, "the input", x.data())?;
    let (n, k) = dims2(OP, "the weights", weights.data())?;
    let back = inverse(places, m).filter(|_| m == n * k);
    let Some(back) = back else {
        let must_be = format!("every row of {m} once, for weights of [{n}, {k}]");
        return Err(Error::Shape { op: OP, what: "places", found: vec![places.len()], must_be });
    };
    if let Some(device) = composed::device([x.data(), weights.data()]) {
        return composed::mix_rows(x, weights, places, back, &device);
    }
    let (x_data, w_data) = (x.data().contiguous()?, weights.data().contiguous()?);
    let (rows, w) = (Floats::of(OP, &x_data)?, F32::of(OP, &w_data)?);
    let y = gather(n, d, |t, y| {
        for (j, place) in places.iter().enumerate().take((t + 1) * k).skip(t * k) {
            let row = place * d..(place + 1) * d;
            with_pieces([rows.elements()], row, |[x]| add_weighted(y, w[j], x));
        }
    });
    Ok(Value::record(OP, tensor(y, &[n, d])?, [x, weights], |[need_x, need_w]| {
        let kept = need_w.then(|| Kept::of(x, &x_data)); // only dw reads x
        let (w_data, places, narrow) = (w_data.clone(), Arc::clone(places), x.is_narrow());
        move |dy: Tensor| {
            let dy = dy.contiguous()?;
            let (dy, w) = (F32::of(OP, &dy)?, F32::of(OP, &w_data)?);
            let dx = need_x.then(|| {
                computed_rows(narrow, m, d, |row, dx| {
                    weighted(dx, w[back[row]], &dy[back[row] / k * d..][..d]);
                })
            });
            let x = kept.as_ref().map(|kept| kept.read(OP)).transpose()?;
            let dw = x.map(|x| {
                numbers(n * k, d, |j| {
                    let (place, dy) = (places[j], &dy[j / k * d..][..d]);
                    with_pieces([x.elements()], place * d..(place + 1) * d, |[x]| dot(dy, x))
                })
            });
            let dx = dx.map(|dx| dx.tensor(&[m, d])).transpose()?;
            Ok([dx, dw.map(|dw| tensor(dw, &[n, k])).transpose()?])
        }
    }))
}

/// Which entry of `places` names each of `m` rows; `None` unless each is named once.
fn inverse(places: &[usize], m: usize) -> Option<Vec<usize>> {
    let mut back = vec![usize::MAX; m];
    for (entry, row) in places.iter().enumerate() {
        let slot = back.get_mut(*row).filter(|slot| **slot == usize::MAX)?;
        *slot = entry;
    }
    (places.len() == m).then_some(back)
}
