//! Attention in tiles (FlashAttention-2, arXiv:2307.08691): what cuda/attention/*.cu compute, compiled
//! for each width of heads.

use candle_core::{
    CudaDevice, DType, Device, Tensor,
    cuda_backend::cudarc::{
        driver::{DeviceRepr, PushKernelArg, sys::CUfunction_attribute_enum as OfFunction},
        nvrtc::CompileOptions,
    },
};

use super::{F32, FLOATS, Module, address, empty, function, gpu, grid};
use crate::{
    Result,
    ops::{AttentionShape, Span},
};

pub(super) const SOURCE: &str = concat!(
    include_str!("attention/tiles.cu"),
    include_str!("attention/forward.cu"),
    include_str!("attention/backward.cu"),
);

const BF16: &[DType] = &[DType::BF16];

/// Threads of a block.
const THREADS: usize = 128;
/// Rows of a block whose warps have a tile of 16 each.
const BLOCK: usize = THREADS / 32 * 16;
/// Queries of a tile that a block of keys goes over.
const QUERIES: usize = 32;
/// Most sequences of one launch: all that a kernel is handed may take 4 KB.
const SPANS: usize = 32;
/// Blocks that keep a large GPU busy to the end, although some have less to do than others. It isn't
/// asked how large it is: sums would depend on it.
const BUSY: usize = 512;
/// As far as any key is: what stands for no window, and the largest offset. Sums of two fit an i32.
const FAR: usize = 1 << 30;

/// What the kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    head_dim: usize,
    capped: bool,
}

impl Version {
    fn of(shape: &AttentionShape) -> Self {
        Self { head_dim: shape.head_dim, capped: shape.softcap.is_some() }
    }

    /// Tiles of 16 rows for each warp: what is read from shared memory serves all of them, but those
    /// of wide heads don't fit its registers.
    fn tiles(self) -> usize {
        if self.head_dim <= 64 { 2 } else { 1 }
    }

    /// Rows of a block.
    fn rows(self) -> usize {
        BLOCK * self.tiles()
    }

    /// Keys of a tile that a block of queries goes over: of 64 keys of the widest heads two tiles need
    /// more shared memory than smaller GPUs have, 99 KB.
    fn keys(self) -> usize {
        if self.head_dim <= 64 { 64 } else { 32 }
    }

    /// Into how many parts the query heads that share a key head are divided in the backward pass: as
    /// few as keep a GPU busy.
    fn parts(self, shape: &AttentionShape, spans: &[Span]) -> usize {
        let group = shape.heads / shape.kv_heads;
        let tiles = |span: &Span| span.keys.len().div_ceil(self.rows());
        let blocks = shape.kv_heads * spans.iter().map(tiles).sum::<usize>();
        let divides = |parts: &usize| group.is_multiple_of(*parts);
        (1..group).filter(divides).find(|parts| blocks * parts >= BUSY).unwrap_or(group)
    }

    /// Bytes of `rows` rows in shared memory.
    fn shared(self, rows: usize) -> usize {
        rows * (self.head_dim + 8) * size_of::<u16>()
    }

    pub(super) fn name(self) -> String {
        format!("lowrank attention {} {}", self.head_dim, self.capped)
    }

    pub(super) fn options(self) -> CompileOptions {
        let constants = [
            ("THREADS", THREADS),
            ("SPANS", SPANS),
            ("HEAD_DIM", self.head_dim),
            ("CAPPED", self.capped.into()),
            ("FORWARD_TILES", self.tiles()),
            ("QUERY_TILES", self.tiles()),
            ("KEY_TILES", self.tiles()),
            ("KEYS", self.keys()),
            ("QUERIES", QUERIES),
        ];
        let options = constants.map(|(name, value)| format!("-D{name}={value}")).into();
        // The first that multiplies bf16.
        CompileOptions { options, arch: Some("compute_80"), ..CompileOptions::default() }
    }
}

/// A sequence, as the kernels know it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sequence {
    first_tile: i32,
    query: i32,
    queries: i32,
    key: i32,
    keys: i32,
    offset: i32,
}

/// All that the kernels are handed, described there. Addresses that a kernel doesn't use are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Call {
    q: u64,
    k: u64,
    v: u64,
    y: u64,
    lse: u64,
    dy: u64,
    narrow_dy: u64,
    delta: u64,
    dq: u64,
    dk: u64,
    dv: u64,
    dk_parts: u64,
    dv_parts: u64,
    n: i32,
    m: i32,
    heads: i32,
    kv_heads: i32,
    parts: i32,
    scale: f32,
    inner: f32,
    outer: f32,
    causal: i32,
    window: i32,
    spans: i32,
    sequences: [Sequence; SPANS],
}

// SAFETY: a structure of C, of numbers.
unsafe impl DeviceRepr for Call {}

/// Which rows of sequences a kernel cuts into tiles.
#[derive(Clone, Copy)]
enum Rows {
    Queries,
    Keys,
}

impl Rows {
    fn of(self, span: &Span) -> usize {
        match self {
            Self::Queries => span.queries.len(),
            Self::Keys => span.keys.len(),
        }
    }

    /// Whether these sequences have `n` rows together; no row belongs to two.
    fn are_all(self, spans: &[Span], n: usize) -> bool {
        spans.iter().map(|span| self.of(span)).sum::<usize>() == n
    }
}

impl Call {
    fn of([q, k, v]: &[Tensor; 3], shape: &AttentionShape) -> Result<Self> {
        let log2_e = std::f32::consts::LOG2_E;
        let inner = match shape.softcap {
            Some(cap) => 2.0 * log2_e * shape.scale / cap,
            None => log2_e * shape.scale,
        };
        Ok(Self {
            q: address(q, BF16)?,
            k: address(k, BF16)?,
            v: address(v, BF16)?,
            n: q.dim(0)? as i32,
            m: k.dim(0)? as i32,
            heads: shape.heads as i32,
            kv_heads: shape.kv_heads as i32,
            parts: 1,
            scale: shape.scale,
            inner,
            outer: log2_e * shape.softcap.unwrap_or_default(),
            causal: shape.causal.into(),
            window: shape.window.unwrap_or(FAR).min(FAR) as i32,
            ..Self::default()
        })
    }
}

/// A version of the kernels on a GPU.
struct Kernels<'a> {
    gpu: &'a CudaDevice,
    version: Version,
}

impl Kernels<'_> {
    /// Runs a kernel with `each` blocks for every tile of the sequences' rows.
    ///
    /// # Safety
    /// As [`Kernels::run`].
    unsafe fn run_over(
        &self,
        name: &'static str,
        mut call: Call,
        spans: &[Span],
        rows: Rows,
        each: usize,
        shared: usize,
    ) -> Result<()> {
        for spans in spans.chunks(SPANS) {
            let mut tiles = 0;
            for (sequence, span) in call.sequences.iter_mut().zip(spans) {
                *sequence = Sequence {
                    first_tile: tiles as i32,
                    query: span.queries.start as i32,
                    queries: span.queries.len() as i32,
                    key: span.keys.start as i32,
                    keys: span.keys.len() as i32,
                    offset: span.offset.min(FAR) as i32,
                };
                tiles += rows.of(span).div_ceil(self.version.rows());
            }
            call.spans = spans.len() as i32;
            // SAFETY: the caller's promise.
            unsafe { self.run(name, &call, tiles * each, shared) }?;
        }
        Ok(())
    }

    /// Runs a kernel in `blocks` blocks with `shared` bytes of shared memory each.
    ///
    /// # Safety
    /// Addresses that the kernel reads or writes are those of tensors on the GPU of the shapes that
    /// it knows, and sequences lie within them.
    unsafe fn run(
        &self,
        name: &'static str,
        call: &Call,
        blocks: usize,
        shared: usize,
    ) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        let config = grid(name, blocks, THREADS as u32, shared as u32)?;
        let function = function(self.gpu, Module::Attention(self.version), name)?;
        // More than 48 KB have to be asked for.
        let most = OfFunction::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, shared as i32).map_err(candle_core::Error::wrap)?;
        let stream = self.gpu.cuda_stream();
        // SAFETY: the kernels take one `Call`; the rest is the caller's promise.
        unsafe { stream.launch_builder(&function).arg(call).launch(config) }
            .map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// The call with sums of `dy·y` at `delta`, which are written first, and with `dy` in bf16, which
    /// is written to `narrowed` if it isn't.
    fn with_delta(&self, call: Call, narrowed: Option<&Tensor>) -> Result<Call> {
        let narrow_dy = narrowed.map_or(Ok(0), |place| address(place, BF16))?;
        let call = Call { narrow_dy, ..call };
        let rows = (call.n as usize * call.heads as usize).div_ceil(THREADS / 32);
        // SAFETY: a row of each head for a warp; both gradients have the shape of `y`.
        unsafe { self.run("attention_delta", &call, rows, 0) }?;
        Ok(Call { dy: if narrowed.is_some() { narrow_dy } else { call.dy }, ..call })
    }

    /// Writes the gradients of keys `k` and of values: at once, or in parts for some query heads each.
    fn backward_keys(
        &self,
        call: Call,
        k: &Tensor,
        shape: &AttentionShape,
        spans: &[Span],
    ) -> Result<()> {
        let (name, (m, width)) = ("attention_backward_keys", k.dims2()?);
        let numbers = 4 * QUERIES * size_of::<f32>();
        let shared = self.version.shared(2 * self.version.rows() + 4 * QUERIES) + numbers;
        let parts = self.version.parts(shape, spans);
        let each = shape.kv_heads * parts;
        if parts == 1 {
            // SAFETY: shapes and sequences were checked by the operation.
            return unsafe { self.run_over(name, call, spans, Rows::Keys, each, shared) };
        }
        let all = Rows::Keys.are_all(spans, m);
        let sums = place(k.device(), DType::F32, &[2, parts, m, width], all)?;
        let [dk_parts, dv_parts] = [address(&sums.get(0)?, F32)?, address(&sums.get(1)?, F32)?];
        let call = Call { dk_parts, dv_parts, parts: parts as i32, ..call };
        let blocks = (m * width / 2).div_ceil(THREADS);
        // SAFETY: as above; there are as many parts as are said.
        unsafe {
            self.run_over(name, call, spans, Rows::Keys, each, shared)?;
            self.run("attention_sum_parts", &call, blocks, 0)
        }
    }
}

/// Whether [`attention`] takes these operands: rows of bf16 on a GPU at addresses that are read 16
/// bytes at a time, heads of a width that there is a version for, and keys that no two sequences share.
pub(crate) fn takes_in_tiles(
    operands: &[Tensor; 3],
    shape: &AttentionShape,
    spans: &[Span],
) -> bool {
    let suits = |x: &Tensor| {
        let aligned = x.layout().start_offset().is_multiple_of(8);
        x.device().is_cuda() && x.dtype() == DType::BF16 && aligned && x.elem_count() > 0
    };
    let width = shape.head_dim;
    let known = width == shape.value_dim && width.is_multiple_of(16) && width <= 128;
    let mut keys: Vec<_> = spans.iter().map(|s| &s.keys).filter(|keys| !keys.is_empty()).collect();
    keys.sort_by_key(|keys| keys.start);
    let apart = keys.windows(2).all(|pair| pair[0].end <= pair[1].start);
    operands.iter().all(suits) && known && apart
}

/// Attention as [`crate::ops::attention`] describes it, without bias and dropout, of operands that
/// [`takes_in_tiles`]; and the logarithms, to base 2, of the sums of each row's exponentials,
/// `[heads, n]`, for the backward pass.
pub(crate) fn attention(
    operands: &[Tensor; 3],
    shape: &AttentionShape,
    spans: &[Span],
) -> Result<(Tensor, Tensor)> {
    let q = &operands[0];
    let (kernels, n) = (Kernels { gpu: gpu(q)?, version: Version::of(shape) }, q.dim(0)?);
    let (all, width) = (Rows::Queries.are_all(spans, n), shape.heads * shape.value_dim);
    let y = place(q.device(), DType::BF16, &[n, width], all)?;
    let lse = empty(kernels.gpu, DType::F32, &[shape.heads, n])?;
    let call = Call::of(operands, shape)?;
    let call = Call { y: address(&y, BF16)?, lse: address(&lse, F32)?, ..call };
    let shared = kernels.version.shared(kernels.version.rows() + 4 * kernels.version.keys());
    let (name, rows, each) = ("attention_forward", Rows::Queries, shape.heads);
    // SAFETY: shapes and sequences were checked by the operation.
    unsafe { kernels.run_over(name, call, spans, rows, each, shared) }?;
    Ok((y, lse))
}

/// The gradients of the operands of [`attention`] in bf16, from the gradient `dy` of its result `y`,
/// f32 or bf16.
pub(crate) fn attention_backward(
    operands: &[Tensor; 3],
    [y, lse]: [&Tensor; 2],
    dy: &Tensor,
    shape: &AttentionShape,
    spans: &[Span],
) -> Result<[Tensor; 3]> {
    let [q, k, v] = operands;
    let (kernels, n) = (Kernels { gpu: gpu(q)?, version: Version::of(shape) }, q.dim(0)?);
    let delta = empty(kernels.gpu, DType::F32, &[shape.heads, n])?;
    let narrowed = match dy.dtype() {
        DType::BF16 => None,
        _ => Some(empty(kernels.gpu, DType::BF16, dy.dims())?),
    };
    let gradient = |x: &Tensor, all| place(x.device(), DType::BF16, x.dims(), all);
    let dq = gradient(q, Rows::Queries.are_all(spans, n))?;
    let all_keys = Rows::Keys.are_all(spans, k.dim(0)?);
    let (dk, dv) = (gradient(k, all_keys)?, gradient(v, all_keys)?);
    let call = Call {
        y: address(y, BF16)?,
        lse: address(lse, F32)?,
        dy: address(dy, FLOATS)?,
        delta: address(&delta, F32)?,
        dq: address(&dq, BF16)?,
        dk: address(&dk, BF16)?,
        dv: address(&dv, BF16)?,
        ..Call::of(operands, shape)?
    };
    let call = kernels.with_delta(call, narrowed.as_ref())?;
    let shared = kernels.version.shared(2 * kernels.version.rows() + 4 * kernels.version.keys());
    let (name, rows, each) = ("attention_backward_queries", Rows::Queries, shape.heads);
    // SAFETY: shapes and sequences were checked by the operation; `dy` has the shape of `y`.
    unsafe { kernels.run_over(name, call, spans, rows, each, shared) }?;
    kernels.backward_keys(call, k, shape, spans)?;
    Ok([dq, dk, dv])
}

/// A tensor of rows that a kernel is going to write: `all` of them, otherwise the rest are zeros.
fn place(device: &Device, dtype: DType, shape: &[usize], all: bool) -> Result<Tensor> {
    match all {
        true => empty(device.as_cuda_device()?, dtype, shape),
        false => Ok(Tensor::zeros(shape, dtype, device)?),
    }
}
