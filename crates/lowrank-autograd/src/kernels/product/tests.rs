//! Every engine that this machine has, against plain sums in f64, over odd sizes.

use half::{bf16, f16};

use super::*;
use crate::Key;

/// `rows × columns` numbers as they are after rounding to a dtype, with its memory.
enum Memory {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Memory {
    fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(data) => Elements::F32(data),
            Self::Bf16(data) => Elements::Bf16(data),
            Self::F16(data) => Elements::F16(data),
        }
    }

    fn get(&self, i: usize) -> f64 {
        match self {
            Self::F32(data) => f64::from(data[i]),
            Self::Bf16(data) => data[i].to_f64(),
            Self::F16(data) => data[i].to_f64(),
        }
    }
}

fn numbers(seed: u64, n: usize) -> Vec<f32> {
    Key::new(seed).normals(n)
}

/// Where lines and steps of a matrix of `lines × inner` lie, three ways.
fn layouts(lines: usize, inner: usize) -> [(usize, usize, usize); 3] {
    let (l, i) = (lines.max(1), inner.max(1));
    [(i + 3, 1, l * (i + 3)), (1, l + 5, i * (l + 5)), (2 * i + 1, 2, l * (2 * i + 1))]
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    r: usize,
    add: bool,
    bias: bool,
    scale: f32,
    /// Whether the left factor is bf16.
    half: bool,
}

impl Case {
    fn check(&self, engine: Option<Engine>, a_layout: usize, b_layout: usize, dtype: usize) {
        let Self { m, n, k, r, .. } = *self;
        let (als, ass, alen) = layouts(m, k)[a_layout];
        let (bls, bss, blen) = layouts(n, k)[b_layout];
        let a = match self.half {
            true => Memory::Bf16(numbers(1, alen).into_iter().map(bf16::from_f32).collect()),
            false => Memory::F32(numbers(1, alen)),
        };
        let plain = numbers(2, blen);
        let b = match dtype {
            0 => Memory::F32(plain),
            1 => Memory::Bf16(plain.iter().map(|v| bf16::from_f32(*v)).collect()),
            _ => Memory::F16(plain.iter().map(|v| f16::from_f32(*v)).collect()),
        };
        let (left, right, bias) = (numbers(3, m * r), numbers(4, n * r), numbers(5, n));
        let stride = n + 3;
        let before = numbers(6, m * stride);
        let factor = |elements, lines, line_stride, step_stride| Factor {
            elements,
            lines,
            inner: k,
            line_stride,
            step_stride,
        };
        let tail = (View::new(&left, m, r).by_rows(), View::new(&right, n, r).by_rows());
        let tails = [tail];
        let job = Job {
            a: factor(a.elements(), m, als, ass),
            b: factor(b.elements(), n, bls, bss),
            scale: self.scale,
            add: self.add,
            bias: self.bias.then_some(&bias),
            tails: if r > 0 { &tails } else { &[] },
            rounds: true,
            parallel: true,
        };
        let mut got = before.clone();
        run(job, engine, &mut got, stride);
        // Pairs of bf16 round the left factor as well.
        let in_pairs = |engine| matches!(engine, Engine::Avx512Bf16 | Engine::Amx);
        let rounds = dtype == 1 && engine.is_none_or(in_pairs);
        for row in 0..m {
            for column in 0..stride {
                let at = row * stride + column;
                if column >= n {
                    assert_eq!(got[at], before[at], "written beyond the target");
                    continue;
                }
                let terms =
                    (0..k).map(|i| a.get(row * als + i * ass) * b.get(column * bls + i * bss));
                let size: f64 = terms.clone().map(f64::abs).sum();
                let mut want = f64::from(self.scale) * terms.sum::<f64>();
                want += if self.add { f64::from(before[at]) } else { 0.0 };
                want += if self.bias { f64::from(bias[column]) } else { 0.0 };
                let tail = |i| f64::from(left[row * r + i]) * f64::from(right[column * r + i]);
                want += (0..r).map(tail).sum::<f64>();
                let relative = if rounds { 4e-3 } else { 1e-6 };
                let bound = relative * (1.0 + size) + 1e-5;
                let got = f64::from(got[at]);
                assert!(
                    (got - want).abs() <= bound,
                    "{engine:?} {m}×{n}×{k}+{r} layouts {a_layout} {b_layout} dtype {dtype} at \
                     {row},{column}: {got}, not {want}"
                );
            }
        }
    }
}

#[expect(unsafe_code, reason = "products take the target as a pointer")]
fn run(job: Job<'_>, engine: Option<Engine>, to: &mut [f32], stride: usize) {
    assert!(job.a.lines == 0 || to.len() >= (job.a.lines - 1) * stride + job.b.lines);
    // SAFETY: every row lies inside `to`, and only engines of this machine are asked for.
    unsafe {
        match engine {
            None => job.run_into(to.as_mut_ptr(), stride),
            Some(Engine::Portable) => job.run_anywhere(to.as_mut_ptr(), stride),
            #[cfg(target_arch = "x86_64")]
            Some(Engine::Amx) => {
                let planes = if job.b.is_bf16() { 1 } else { amx::PLANES };
                job.run_tiles(planes, tiles::Out::F32(to.as_mut_ptr()), stride);
            }
            #[cfg(target_arch = "x86_64")]
            Some(engine) => job.run_packed(engine, to.as_mut_ptr(), stride),
            #[cfg(not(target_arch = "x86_64"))]
            Some(_) => {}
        }
    }
}

fn case(m: usize, n: usize, k: usize, r: usize) -> Case {
    Case { m, n, k, r, add: false, bias: false, scale: 1.0, half: false }
}

#[test]
fn every_engine_multiplies_odd_sizes_in_every_layout_and_dtype() {
    let sizes = [(1, 1, 1), (2, 3, 5), (14, 32, 16), (15, 33, 17), (29, 70, 47), (45, 31, 96)];
    for engine in Engine::all() {
        for (m, n, k) in sizes {
            for layouts in 0..9 {
                // Weights lie contiguous, one way or the other.
                let dtypes = if layouts % 3 == 2 { 0..1 } else { 0..3 };
                for dtype in dtypes {
                    for half in [false, true] {
                        let case = Case { half, ..case(m, n, k, 0) };
                        case.check(Some(engine), layouts / 3, layouts % 3, dtype);
                    }
                }
            }
        }
    }
}

#[test] // with more threads than cores, some of them finish parts of what others began
fn results_do_not_depend_on_who_makes_them() {
    let ([m, n, k], stride) = ([300, 700, 1100], 703);
    let (a, b) = (numbers(1, m * k), numbers(2, n * k));
    let narrow = b.iter().map(|v| bf16::from_f32(*v)).collect();
    for b in [Memory::F32(b), Memory::Bf16(narrow)] {
        let product = |threads: usize| {
            let (a, b) = (View::new(&a, m, k).by_rows(), View::over(b.elements(), n, k).by_rows());
            let (bias, tails, rounds) = (None, &[][..], true);
            let job = Job { a, b, scale: 1.0, add: false, bias, tails, rounds, parallel: true };
            let mut to = vec![0.0; m * stride];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let pool = pool.expect("threads");
            pool.install(|| run(job, None, &mut to, stride));
            to
        };
        let alone = product(1);
        (0..10).for_each(|_| assert!(product(5) == alone, "results differ"));
    }
}

#[test]
fn bias_tails_and_what_stood_there_are_added() {
    for engine in Engine::all() {
        for dtype in 0..3 {
            let all = Case { add: true, bias: true, scale: 0.5, ..case(31, 65, 33, 8) };
            all.check(Some(engine), 0, 0, dtype);
            Case { bias: true, ..case(17, 40, 20, 3) }.check(Some(engine), 0, 1, dtype);
            Case { add: true, ..case(16, 64, 18, 16) }.check(Some(engine), 1, 0, dtype);
            Case { bias: true, ..case(64, 96, 40, 0) }.check(Some(engine), 0, 0, dtype);
            Case { add: true, scale: 0.5, ..case(96, 64, 70, 0) }.check(Some(engine), 0, 1, dtype);
            Case { add: true, bias: true, ..case(32, 64, 32, 0) }.check(Some(engine), 0, 0, dtype);
            Case { half: true, bias: true, ..case(40, 64, 70, 9) }.check(Some(engine), 0, 1, dtype);
        }
    }
}

#[test]
fn inner_dimensions_and_rows_beyond_a_block_are_added_up() {
    for engine in Engine::all() {
        for dtype in 0..2 {
            Case { bias: true, ..case(5, 35, 1601, 8) }.check(Some(engine), 0, 0, dtype);
            Case { add: true, ..case(40, 70, 1201, 3) }.check(Some(engine), 0, 1, dtype);
            case(701, 34, 33, 4).check(Some(engine), 0, 1, dtype);
            case(200, 200, 100, 0).check(Some(engine), 0, 0, dtype);
        }
    }
}

#[test]
fn rows_of_bf16_are_multiplied_from_where_they_lie() {
    let sizes = [(32, 32, 32), (64, 40, 96), (70, 130, 160), (33, 64, 1024), (65, 96, 1632)];
    for engine in Engine::all() {
        for (m, n, k) in sizes {
            for b_layout in 0..2 {
                let whole = Case { half: true, ..case(m, n, k, 0) };
                whole.check(Some(engine), 0, b_layout, 1);
                Case { add: true, bias: true, r: 5, ..whole }.check(Some(engine), 0, b_layout, 1);
            }
        }
        Case { half: true, scale: 0.5, ..case(70, 40, 64, 3) }.check(Some(engine), 0, 0, 1);
        Case { half: true, ..case(600, 40, 64, 0) }.check(Some(engine), 0, 1, 1);
    }
    // Parts of rows that up to two threads read so often that they are packed.
    Case { half: true, ..case(33, 2300, 1056, 0) }.check(None, 0, 0, 1);
}

#[test]
fn few_rows_on_either_side_take_the_way_of_inner_products() {
    for few in 1..=9 {
        for dtype in 0..3 {
            let terms = Case { add: true, bias: true, scale: 2.0, ..case(few, 513, 77, 3) };
            terms.check(None, 0, 0, dtype);
            case(few, 300, 1030, 0).check(None, 0, 0, dtype);
            case(few, 300, 130, 2).check(None, 0, 1, dtype);
        }
        case(530, few, 131, 0).check(None, 0, 0, 0);
    }
}

#[test]
fn nothing_to_multiply_leaves_zeros_or_the_bias() {
    for engine in Engine::all() {
        case(3, 5, 0, 0).check(Some(engine), 0, 0, 0);
        Case { bias: true, ..case(3, 5, 0, 2) }.check(Some(engine), 0, 0, 0);
    }
    case(0, 5, 3, 0).check(None, 0, 0, 0);
    case(5, 0, 3, 0).check(None, 0, 0, 0);
}

/// `a·bᵀ` by an engine, for `a` `[m, k]` and `b` `[n, k]`.
fn plain(engine: Engine, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let factor = |data, lines| View::new(data, lines, k).by_rows();
    let job = Job {
        a: factor(a, m),
        b: factor(b, n),
        scale: 1.0,
        add: false,
        bias: None,
        tails: &[],
        rounds: false,
        parallel: true,
    };
    let mut to = vec![0.0; m * n];
    run(job, Some(engine), &mut to, n);
    to
}

#[test]
fn products_of_f32_are_about_as_exact_on_every_engine() {
    let size @ [m, n, k] = [45, 67, 1500];
    let (a, b) = (numbers(1, m * k), numbers(2, n * k));
    let exact = |row: usize, column: usize| -> f64 {
        (0..k).map(|i| f64::from(a[row * k + i]) * f64::from(b[column * k + i])).sum()
    };
    let error = |engine| -> f64 {
        let squares = plain(engine, &a, &b, size).into_iter().enumerate();
        squares.map(|(i, v)| (f64::from(v) - exact(i / n, i % n)).powi(2)).sum::<f64>().sqrt()
    };
    let expected = error(Engine::Portable);
    for engine in Engine::all() {
        let found = error(engine);
        assert!(found < 2.0 * expected, "{engine:?}: {found}, portable {expected}");
    }
}

#[test]
fn factors_of_every_size_are_multiplied() {
    let size @ [m, n, k] = [40, 33, 64];
    // Powers of two from 2⁻¹⁰⁰ to 2¹⁰⁰, so that products stay finite and normal.
    let spread = |seed, len| -> Vec<f32> {
        let sizes = Key::new(seed).at("sizes");
        let grow =
            |(i, v): (usize, f32)| v * 2_f32.powi((sizes.uniform(i as u64) * 200.0) as i32 - 100);
        numbers(seed, len).into_iter().enumerate().map(grow).collect()
    };
    let (a, mut b) = (spread(1, m * k), numbers(2, n * k));
    b[5] = f32::MAX; // beyond the largest bf16
    let mut least = a.clone();
    least[5] = 0.25;
    for engine in Engine::all() {
        for a in [&a, &least] {
            let found = plain(engine, a, &b, size);
            for (i, v) in found.iter().enumerate() {
                let terms =
                    (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[i % n * k + j]));
                let (want, size) =
                    terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                if size < f64::from(f32::MAX) {
                    assert!(
                        (f64::from(*v) - want).abs() <= 1e-5 * size,
                        "{engine:?} {i}: {v}, not {want}"
                    );
                }
            }
        }
        let mut infinite = a.clone();
        infinite[7] = f32::INFINITY;
        assert!(
            plain(engine, &infinite, &b, size)[1..n].iter().all(|v| !v.is_finite()),
            "{engine:?}"
        );
    }
}
