//! Resizing as Pillow does it: each new pixel is a weighted sum of those around its place, in rows
//! and in columns, rounded to bytes in between. Reference: Pillow `src/libImaging/
//! Resample.c`.

/// Bits of a weight after the point.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// How much a pixel counts by its distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// A triangle.
    Bilinear,
    /// Keys' cubic with the slope -1/2.
    Bicubic,
}

impl Filter {
    /// The distance from which on nothing counts.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

/// What a new pixel is made of: the first old one, and the weights of those from there on.
struct Window {
    first: usize,
    weights: Vec<i64>,
}

/// Pixels `[height, width, 3]` in another size.
pub(super) fn resize(rgb: &[u8], from: [usize; 2], to: [usize; 2], filter: Filter) -> Vec<u8> {
    let ([height, width], [new_height, new_width]) = (from, to);
    // The order shows, as sums are rounded in between. Found by trying: Pillow 13 begins with the
    // columns where these lose more than twice as much as the rows.
    match new_height < height && height - new_height + 2 * new_width > 2 * width {
        true => {
            wider(&higher(rgb, from, new_height, filter), [new_height, width], new_width, filter)
        }
        false => {
            higher(&wider(rgb, from, new_width, filter), [height, new_width], new_height, filter)
        }
    }
}

/// Rows of another length.
fn wider(rgb: &[u8], [height, width]: [usize; 2], to: usize, filter: Filter) -> Vec<u8> {
    if to == width {
        return rgb.to_vec();
    }
    let windows = windows(width, to, filter);
    let places = (0..height).flat_map(|y| windows.iter().map(move |window| (y, window)));
    places.flat_map(|(y, w)| sum(rgb, w, |i| (y * width + w.first + i) * 3)).collect()
}

/// Columns of another length.
fn higher(rgb: &[u8], [height, width]: [usize; 2], to: usize, filter: Filter) -> Vec<u8> {
    if to == height {
        return rgb.to_vec();
    }
    let windows = windows(height, to, filter);
    let places = windows.iter().flat_map(|window| (0..width).map(move |x| (window, x)));
    places.flat_map(|(w, x)| sum(rgb, w, |i| ((w.first + i) * width + x) * 3)).collect()
}

/// The weighted sum of pixels; `at` says where the `i`-th one's colours lie.
fn sum(pixels: &[u8], window: &Window, at: impl Fn(usize) -> usize) -> [u8; 3] {
    let mut sums = [1i64 << (PRECISION_BITS - 1); 3];
    for (i, weight) in window.weights.iter().enumerate() {
        let colours = pixels.get(at(i)..).unwrap_or_default();
        for (sum, &colour) in sums.iter_mut().zip(colours) {
            *sum += weight * i64::from(colour);
        }
    }
    sums.map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8)
}

/// One window for each of `to` new pixels in a line of `from`.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    // A smaller picture's pixels are means over all that they stand for.
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |pixel: usize| {
        let center = (pixel as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |old: usize| filter.weight((old as f64 - center + 0.5) / stretch);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let whole: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let scaled = w / whole * f64::from(1u32 << PRECISION_BITS);
            // Truncation after this rounds to the nearest number.
            (scaled + 0.5f64.copysign(scaled)) as i64
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}
