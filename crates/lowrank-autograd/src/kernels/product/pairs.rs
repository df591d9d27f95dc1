//! Products of small factors as pairs of bf16, which the caller packs, for what multiplies the same
//! factor many times over.

use super::{
    View, amx,
    engine::Engine,
    pack::Strip,
    setting::Setting,
    tile::{Place, Run},
};

/// The kernels, where the machine is fast at pairs of bf16.
#[derive(Clone, Copy)]
pub(crate) struct Pairs(Setting);

/// This thread multiplies until it is dropped.
pub(crate) struct Begun(
    #[expect(dead_code, reason = "dropped at the end")] Option<super::amx::Tiles>,
);

impl Pairs {
    /// Those that this machine is fast at.
    pub(crate) fn best() -> Option<Self> {
        Self::of(Engine::best())
    }

    fn of(engine: Engine) -> Option<Self> {
        let pairs = matches!(engine, Engine::Avx512Bf16 | Engine::Amx);
        pairs.then(|| Self(Setting::of(engine, true)))
    }

    /// All that run here, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        Engine::all().into_iter().filter_map(Self::of).collect()
    }

    /// Whether they are tiles of AMX.
    pub(super) fn are_tiles(self) -> bool {
        self.0.engine == Engine::Amx
    }

    /// Readies this thread; every [`Pairs::multiply`] stands inside.
    pub(crate) fn begin(&self) -> Begun {
        Begun(self.0.begin())
    }

    /// Lanes of a packed left factor `[rows, inner]`.
    pub(crate) fn left_len(&self, rows: usize, inner: usize) -> usize {
        rows.next_multiple_of(self.0.rows) * self.0.steps(inner)
    }

    /// Lanes of a packed right factor `[inner, columns]`.
    pub(crate) fn right_len(&self, inner: usize, columns: usize) -> usize {
        columns.next_multiple_of(self.0.width) * self.0.steps(inner)
    }

    /// Packs a left factor, scaled.
    pub(crate) fn pack_left(&self, from: View<'_>, scale: f32, out: &mut [u32]) {
        let (lines, inner, height) = (from.rows, from.columns, self.0.rows);
        let size = (height * self.0.steps(inner)).max(1);
        for (panel, out) in out.chunks_mut(size).enumerate().take(lines.div_ceil(height)) {
            let first_line = panel * height;
            let lines = height.min(lines - first_line);
            self.0.pack_left(
                &from.by_rows(),
                self.strip(first_line, lines, lines, inner, scale),
                out,
            );
        }
    }

    /// Packs a right factor, scaled.
    pub(crate) fn pack_right(&self, from: View<'_>, scale: f32, out: &mut [u32]) {
        let (lines, inner, width) = (from.columns, from.rows, self.0.width);
        let size = (width * self.0.steps(inner)).max(1);
        for (panel, out) in out.chunks_mut(size).enumerate().take(lines.div_ceil(width)) {
            let first_line = panel * width;
            let strip = self.strip(first_line, width.min(lines - first_line), width, inner, scale);
            self.0.pack(&from.t().by_rows(), strip, out);
            out[strip.steps() * width..].fill(0);
        }
    }

    fn strip(
        &self,
        first_line: usize,
        lines: usize,
        width: usize,
        len: usize,
        scale: f32,
    ) -> Strip {
        Strip { first_line, lines, first: 0, len, width, lanes: self.0.lanes, scale }
    }

    /// `to = keep·to + left·right` of `[m, k]` and `[k, n]`, rows of `to` `stride` apart.
    #[expect(unsafe_code, reason = "tile kernels take pointers")]
    pub(crate) fn multiply(
        &self,
        _begun: &Begun,
        to: &mut [f32],
        stride: usize,
        keep: bool,
        [m, n, k]: [usize; 3],
        [left, right]: [&[u32]; 2],
    ) {
        let Setting { rows: height, width, kernels, .. } = self.0;
        if m == 0 || n == 0 {
            return;
        }
        let steps = self.0.steps(k);
        assert!(n <= stride || m == 1, "rows of the target overlap");
        assert!((m - 1) * stride + n <= to.len(), "a target beyond its slice");
        assert!(left.len() >= m.div_ceil(height) * height * steps, "left factor too short");
        assert!(right.len() >= n.div_ceil(width) * width * steps, "right factor too short");
        if self.0.engine == Engine::Amx {
            let factors = [left.as_ptr(), right.as_ptr()];
            // SAFETY: the assertions keep the panels and the target's rows inside their slices, and
            // whoever holds `_begun` has tiles on this thread.
            return unsafe {
                amx::multiply_panels(to.as_mut_ptr(), stride, keep, [m, n, steps], factors);
            };
        }
        let tail = Run { steps: 0, a: left.as_ptr(), b: right.as_ptr() };
        for column in (0..n).step_by(width) {
            for row in (0..m).step_by(height) {
                let rows = height.min(m - row);
                let run = Run {
                    steps,
                    a: left[row * steps..].as_ptr(),
                    b: right[column * steps..].as_ptr(),
                };
                let place = Place {
                    to: to[row * stride + column..].as_mut_ptr(),
                    row_stride: stride,
                    columns: width.min(n - column),
                    add: keep,
                    bias: std::ptr::null(),
                };
                // SAFETY: the assertions keep the panels and the target's rows inside their slices,
                // and whoever holds `_begun` has an engine that exists here, readied on this thread.
                unsafe { kernels[rows - 1](run, tail, place) };
            }
        }
    }
}
