//! Linear layers: adapters, and every way in which a weight may lie in memory.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use candle_core::{DType, Tensor};
use lowrank_autograd::{
    Dropout, MappedFile, Value, Weight,
    ops::{self, LowRank, Matrix},
    reference,
};
use proptest::prelude::*;

use super::{
    check::{check, check_weight, normal, rounded},
    plumbing::mask,
};

const SCALES: [f32; 2] = [0.5, 2.0];

/// Two adapters, the first with a bias: `A`, `B`, bias, `A`, `B` from `v`.
pub(crate) fn terms(v: &[Value], dropout: Option<&Dropout>) -> Vec<LowRank> {
    let term = |a: usize, bias: Option<usize>, scale| LowRank {
        a: v[a].clone(),
        b: v[a + 1].clone(),
        bias: bias.map(|i| v[i].clone()),
        scale,
        dropout: dropout.cloned(),
    };
    vec![term(0, Some(2), SCALES[0]), term(3, None, SCALES[1])]
}

/// The same for the plain version.
pub(crate) fn plain_terms<'a>(
    t: &'a [Tensor],
    dropout: Option<&'a Dropout>,
) -> Vec<reference::LowRank<'a>> {
    let term = |a: usize, bias: Option<usize>, scale: f32| reference::LowRank {
        a: &t[a],
        b: &t[a + 1],
        bias: bias.map(|i| &t[i]),
        scale: f64::from(scale),
        dropout,
    };
    vec![term(0, Some(2), SCALES[0]), term(3, None, SCALES[1])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn with_adapters_equals_its_plain_version(
        (n, input, out, r) in (1..70usize, 1..70usize, 1..70usize, 1..6usize),
        dropped: bool,
        seed: u64,
    ) {
        let (out, input) = (out, input);
        let t = normal(seed, &[
            &[n, input], &[out, input], &[out],
            &[r, input], &[out, r], &[out], &[3, input], &[out, 3],
        ]);
        let mask = dropped.then(|| mask(seed, n, 0.3));
        check(
            &t,
            |v| {
                let matrix = Matrix::Trained { value: &v[1], transposed: false };
                ops::linear(&v[0], matrix, Some(&v[2]), terms(&v[3..], mask.as_ref()))
            },
            |t| {
                let terms = plain_terms(&t[3..], mask.as_ref());
                reference::linear(&t[0], &t[1], Some(&t[2]), &terms)
            },
        );
    }

    #[test]
    fn reads_a_frozen_weight_wherever_it_lies(
        (n, input, out) in (1..70usize, 1..70usize, 1..70usize),
        dtype in prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]),
        place in prop::sample::select(vec![Place::Memory, Place::File, Place::Misaligned]),
        transposed: bool,
        seed: u64,
    ) {
        let mut t = normal(seed, &[
            &[n, input], &[out], &[2, input], &[out, 2], &[out], &[3, input], &[out, 3],
        ]);
        t[0] = rounded(&t[0], dtype);
        let w = normal(!seed, &[&[out, input]]).remove(0).to_dtype(dtype).expect("a dtype");
        let weight = weight(&w, place, transposed);
        assert_eq!((weight.dims(), weight.dtype()), (&[out, input][..], dtype));
        assert_eq!(weight.is_transposed(), transposed);
        check_weight(
            dtype,
            &t,
            |v| ops::linear(&v[0], Matrix::Frozen(&weight), Some(&v[1]), terms(&v[2..], None)),
            |t| {
                let w = w.to_dtype(t[0].dtype())?;
                reference::linear(&t[0], &w, Some(&t[1]), &plain_terms(&t[2..], None))
            },
        );
        let copy = weight.to_f32().expect("a copy");
        let same = copy.sub(&w.to_dtype(DType::F32).expect("f32")).expect("of one shape");
        assert_eq!(same.abs().and_then(|t| t.max_all()?.to_scalar::<f32>()).expect("max"), 0.0);
    }

    #[test]
    fn trains_a_transposed_matrix(
        (n, input, out) in (1..70usize, 1..70usize, 1..70usize),
        seed: u64,
    ) {
        let t = normal(seed, &[&[n, input], &[input, out]]);
        check(
            &t,
            |v| {
                let matrix = Matrix::Trained { value: &v[1], transposed: true };
                ops::linear(&v[0], matrix, None, Vec::new())
            },
            |t| reference::linear(&t[0], &t[1].t()?.contiguous()?, None, &[]),
        );
    }
}

#[test] // more than one block of the inner dimension, in both directions
fn a_large_bf16_weight_equals_its_plain_version() {
    let (n, input, out) = (11, 1_700, 1_000);
    let w = normal(5, &[&[out, input]]).remove(0).to_dtype(DType::BF16).expect("bf16");
    for transposed in [false, true] {
        let weight = weight(&w, Place::Memory, transposed);
        let x = normal(4, &[&[n, input]]).remove(0);
        check_weight(
            DType::BF16,
            &[rounded(&x, DType::BF16)],
            |v| ops::linear(&v[0], Matrix::Frozen(&weight), None, Vec::new()),
            |t| reference::linear(&t[0], &w.to_dtype(t[0].dtype())?, None, &[]),
        );
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Memory,
    File,
    /// A file, at a byte that isn't a multiple of the element's size.
    Misaligned,
}

/// `w` as a weight in its place; `transposed` lays it down as `[in, out]`.
fn weight(w: &Tensor, place: Place, transposed: bool) -> Weight {
    let stored = if transposed { w.t().expect("a matrix") } else { w.clone() };
    let stored = stored.contiguous().expect("contiguous");
    let weight = match place {
        Place::Memory => Weight::from_tensor(&stored),
        Place::File => mapped(&stored, 64),
        Place::Misaligned => mapped(&stored, 65),
    };
    let weight = weight.expect("a weight");
    if transposed { weight.transpose() } else { weight }
}

/// The tensor in a file, from byte `start` on.
pub(crate) fn mapped(t: &Tensor, start: usize) -> lowrank_autograd::Result<Weight> {
    let mut bytes = vec![0xFF; start];
    let numbers = t.flatten_all()?;
    match t.dtype() {
        DType::F32 => numbers.to_vec1::<f32>()?.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
        DType::BF16 => {
            numbers.to_vec1::<half::bf16>()?.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        }
        _ => numbers.to_vec1::<half::f16>()?.iter().for_each(|v| bytes.extend(v.to_le_bytes())),
    }
    let path = temporary_file();
    fs::write(&path, bytes).expect("a temporary file");
    let file = MappedFile::open(&path)?;
    fs::remove_file(&path).expect("the temporary file");
    Weight::mapped(&file, start, t.dims(), t.dtype())
}

/// A path of its own for every call.
pub(crate) fn temporary_file() -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("weight-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn a_weight_that_is_released_after_reading_is_read_again() {
    let w = normal(7, &[&[300, 40]]).remove(0); // several pages, not all of them whole
    let path = temporary_file();
    let numbers = w.flatten_all().and_then(|w| w.to_vec1::<f32>()).expect("numbers");
    let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(&path, bytes).expect("a temporary file");
    let file = MappedFile::open(&path).expect("mapped");
    fs::remove_file(&path).expect("the temporary file");
    let weight = Weight::mapped(&file, 0, w.dims(), DType::F32).expect("a weight");
    let x = Value::constant(normal(8, &[&[3, 40]]).remove(0));
    let run = || {
        let y = ops::linear(&x, ops::Matrix::Frozen(&weight), None, Vec::new()).expect("a product");
        y.data().to_vec2::<f32>().expect("numbers")
    };
    let kept = run();
    for from in [1, 0] {
        file.release_after_reading(from);
        assert_eq!(run(), kept);
        assert_eq!(run(), kept);
    }
}

#[test]
fn a_clone_of_a_weight_keeps_its_file_mapped() {
    let w = normal(1, &[&[3, 2]]).remove(0);
    let weight = Arc::new(weight(&w, Place::File, false)).as_ref().clone();
    assert_eq!(
        weight.to_tensor().and_then(|t| Ok(t.to_vec2::<f32>()?)).expect("numbers"),
        w.to_vec2::<f32>().expect("numbers")
    );
}
