// Kernels of the operations that candle would compose of many, compiled at run time (see cuda.rs).
//
// Matrices lie row by row. `narrow` says that numbers are bf16 and not f32; sums and functions are
// f32 throughout. Where a row is summed up, it has a block of threads, whose order of summation is
// fixed by the number of threads: a result doesn't change between runs.

typedef unsigned short bf16;
typedef long long index_t;

__device__ float load(const void* x, int narrow, index_t i) {
    return narrow ? __uint_as_float((unsigned)((const bf16*)x)[i] << 16) : ((const float*)x)[i];
}

// To the nearest, ties to even; a NaN stays one.
__device__ bf16 rounded(float x) {
    unsigned bits = __float_as_uint(x);
    return isnan(x) ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

__device__ void store(void* y, int narrow, index_t i, float value) {
    if (narrow) ((bf16*)y)[i] = rounded(value);
    else ((float*)y)[i] = value;
}

struct Sum {
    template <typename T> __device__ static T of(T a, T b) { return a + b; }
};
struct Max {
    template <typename T> __device__ static T of(T a, T b) { return a > b ? a : b; }
};
struct Min {
    template <typename T> __device__ static T of(T a, T b) { return a < b ? a : b; }
};

// What all threads of a block hold, made one; `nothing` changes nothing. Each gets the result.
template <typename Of, typename T> __device__ T of_block(T v, T nothing) {
    __shared__ T parts[32];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int step = 16; step; step >>= 1) v = Of::of(v, __shfl_xor_sync(~0u, v, step));
    __syncthreads();  // an earlier call's parts may still be read
    if (!lane) parts[warp] = v;
    __syncthreads();
    v = lane < blockDim.x >> 5 ? parts[lane] : nothing;
    for (int step = 16; step; step >>= 1) v = Of::of(v, __shfl_xor_sync(~0u, v, step));
    return v;
}

__device__ index_t place() { return (index_t)blockIdx.x * blockDim.x + threadIdx.x; }

// ---- norms -------------------------------------------------------------------------------------

// Mean of a row (0 unless it is centred) and 1/√(mean square + ε) of what is left.
__device__ void moments(const void* x, int narrow, index_t row, int d, float eps, int centred,
                        float* mean, float* inverse) {
    *mean = 0;
    if (centred) {
        float sum = 0;
        for (int i = threadIdx.x; i < d; i += blockDim.x) sum += load(x, narrow, row + i);
        *mean = of_block<Sum>(sum, 0.0f) / d;
    }
    float square = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float v = load(x, narrow, row + i) - *mean;
        square += v * v;
    }
    *inverse = 1.0f / sqrtf(of_block<Sum>(square, 0.0f) / d + eps);
}

// y = (x - mean)/size·w + b, and its bf16 version if one is asked for.
extern "C" __global__ void normalize(const void* x, const float* w, const float* b, float* y, bf16* y16,
                                     int narrow, int d, float eps, int centred) {
    index_t row = (index_t)blockIdx.x * d;
    float mean, inverse;
    moments(x, narrow, row, d, eps, centred, &mean, &inverse);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float v = (load(x, narrow, row + i) - mean) * inverse * w[i] + (b ? b[i] : 0.0f);
        y[row + i] = v;
        if (y16) y16[row + i] = rounded(v);
    }
}

// With u = (x - mean)/size and g = dy·w: dx = (g - u·mean(g·u) - mean(g))/size, the last if centred.
extern "C" __global__ void normalize_backward(const float* dy, const void* x, const float* w, float* dx,
                                         int narrow, int d, float eps, int centred) {
    index_t row = (index_t)blockIdx.x * d;
    float mean, inverse;
    moments(x, narrow, row, d, eps, centred, &mean, &inverse);
    float along = 0, across = 0;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float g = dy[row + i] * w[i];
        along += g * (load(x, narrow, row + i) - mean) * inverse;
        across += g;
    }
    along = of_block<Sum>(along, 0.0f) / d;
    across = centred ? of_block<Sum>(across, 0.0f) / d : 0.0f;
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
        float u = (load(x, narrow, row + i) - mean) * inverse;
        dx[row + i] = (dy[row + i] * w[i] - u * along - across) * inverse;
    }
}

// ---- activation functions ----------------------------------------------------------------------

// In the order of `code` in elementwise.rs.
enum Function { RELU, SILU, GELU, GELU_TANH, QUICK_GELU, TANH, SIGMOID, IDENTITY };

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// √(2/π)·(x + 0.044715·x³)
__device__ float inner(float x) {
    return x * (0.79788456080286536f + 0.79788456080286536f * 0.044715f * x * x);
}

__device__ float of(int f, float x) {
    switch (f) {
        case RELU: return x < 0.0f ? 0.0f : x;  // NaN stays
        case SILU: return x * sigmoid(x);
        case GELU: return x * 0.5f * (1.0f + erff(x * 0.70710678118654752f));
        case GELU_TANH: return x * sigmoid(2.0f * inner(x));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case TANH: return tanhf(x);
        case SIGMOID: return sigmoid(x);
        default: return x;
    }
}

// The derivative of x·σ(c·x).
__device__ float swish_slope(float x, float c) {
    float s = sigmoid(c * x);
    return s * (1.0f + c * x * (1.0f - s));
}

__device__ float slope(int f, float x) {
    switch (f) {
        case RELU: return x > 0.0f ? 1.0f : 0.0f;
        case SILU: return swish_slope(x, 1.0f);
        case GELU: {
            float share = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
            return share + x * expf(-0.5f * x * x) * 0.39894228040143268f;
        }
        case GELU_TANH: {
            float s = sigmoid(2.0f * inner(x));
            float steep = 0.79788456080286536f * (1.0f + 3.0f * 0.044715f * x * x);
            return s + 2.0f * x * s * (1.0f - s) * steep;
        }
        case QUICK_GELU: return swish_slope(x, 1.702f);
        case TANH: {
            float t = tanhf(x);
            return 1.0f - t * t;
        }
        case SIGMOID: {
            float s = sigmoid(x);
            return s * (1.0f - s);
        }
        default: return 1.0f;
    }
}

// y = f(g)·u, or f(g) without u, in f32 and in bf16 as far as either is asked for.
extern "C" __global__ void gated(const void* g, int narrow_g, const void* u, int narrow_u, float* y,
                                 bf16* y16, index_t n, int f) {
    index_t i = place();
    if (i >= n) return;
    float v = of(f, load(g, narrow_g, i)) * (u ? load(u, narrow_u, i) : 1.0f);
    if (y) y[i] = v;
    if (y16) y16[i] = rounded(v);
}

// dg = dy·u·f'(g) and du = dy·f(g), as far as they are asked for; u is 1 where there is none.
extern "C" __global__ void gated_backward(const void* dy, int narrow, const void* g, int narrow_g,
                                          const void* u, int narrow_u, void* dg, int narrow_dg,
                                          void* du, int narrow_du, index_t n, int f) {
    index_t i = place();
    if (i >= n) return;
    float x = load(g, narrow_g, i), d = load(dy, narrow, i);
    if (dg) store(dg, narrow_dg, i, d * (u ? load(u, narrow_u, i) : 1.0f) * slope(f, x));
    if (du) store(du, narrow_du, i, d * of(f, x));
}

// a + b
extern "C" __global__ void added(const void* a, int narrow_a, const void* b, int narrow_b, float* y,
                                 index_t n) {
    index_t i = place();
    if (i < n) y[i] = load(a, narrow_a, i) + load(b, narrow_b, i);
}

// ---- rotary ------------------------------------------------------------------------------------

// Turns elements first..first + 2·half of every head, which are paired side by side (`pairs`) or
// half against half, by the angles of the row; `sign` -1 turns back.
extern "C" __global__ void rotary(const void* x, const float* cosine, const float* sine, void* y,
                                  int narrow, index_t n, int width, int head_dim, int first,
                                  int half, int pairs, float sign) {
    index_t i = place();
    if (i >= n) return;
    int c = (int)(i % width) % head_dim - first;
    float own = load(x, narrow, i);
    if (c < 0 || c >= 2 * half) {
        store(y, narrow, i, own);
        return;
    }
    int pair = pairs ? c / 2 : c % half, second = pairs ? c % 2 : c / half;
    int apart = pairs ? 1 : half;
    index_t angle = i / width * half + pair;
    float s = sign * sine[angle], other = load(x, narrow, second ? i - apart : i + apart);
    store(y, narrow, i, own * cosine[angle] + (second ? other * s : -other * s));
}

// ---- attention ---------------------------------------------------------------------------------

// `to_heads`: [rows, heads, dim] as [heads, rows, dim]; otherwise the way back.
extern "C" __global__ void swap_heads(const void* x, void* y, index_t n, int rows, int heads, int dim,
                                      int to_heads, int narrow, int narrow_y) {
    index_t i = place();  // of the result
    if (i >= n) return;
    int c = (int)(i % dim);
    index_t at = i / dim;
    index_t from = to_heads ? (at % rows * heads + at / rows) * dim + c
                            : (at % heads * rows + at / heads) * dim + c;
    store(y, narrow_y, i, load(x, narrow, from));
}

// A score as the softmax reads it.
__device__ float capped(float z, float scale, float cap) {
    return cap > 0.0f ? cap * tanhf(z * scale / cap) : z * scale;
}

// Probabilities of the scores z [heads·queries, keys] of a sequence whose first query is at `offset`
// among the keys; a window of -1 is none. Keys that a query doesn't see get 0, and so do all where it
// sees none. p may be z.
extern "C" __global__ void softmax(const float* z, void* p, int narrow, int queries, int keys,
                                   float scale, float cap, int causal, int offset, int window) {
    index_t row = (index_t)blockIdx.x * keys;
    int query = offset + blockIdx.x % queries;
    int end = causal ? min(keys, query + 1) : keys, start = window < 0 ? 0 : max(0, query - window + 1);
    float most = -3.402823466e+38f, sum = 0;
    for (int i = start + threadIdx.x; i < end; i += blockDim.x)
        most = fmaxf(most, capped(z[row + i], scale, cap));
    most = of_block<Max>(most, -3.402823466e+38f);
    for (int i = start + threadIdx.x; i < end; i += blockDim.x)
        sum += expf(capped(z[row + i], scale, cap) - most);
    sum = fmaxf(of_block<Sum>(sum, 0.0f), 1.175494351e-38f);
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
        bool seen = i >= start && i < end;
        float v = seen ? expf(capped(z[row + i], scale, cap) - most) / sum : 0.0f;
        store(p, narrow, row + i, v);
    }
}

// ds = (dp - Σ dp·p)·p·scale, with the cap's derivative if there is one, for which z is read.
extern "C" __global__ void softmax_backward(const float* dp, const void* p, const float* z, void* ds,
                                            int narrow, int narrow_p, int keys, float scale,
                                            float cap) {
    index_t row = (index_t)blockIdx.x * keys;
    float mean = 0;
    for (int i = threadIdx.x; i < keys; i += blockDim.x)
        mean += dp[row + i] * load(p, narrow_p, row + i);
    mean = of_block<Sum>(mean, 0.0f);
    for (int i = threadIdx.x; i < keys; i += blockDim.x) {
        float v = (dp[row + i] - mean) * load(p, narrow_p, row + i) * scale;
        if (cap > 0.0f) {
            float t = tanhf(z[row + i] * scale / cap);
            v *= 1.0f - t * t;
        }
        store(ds, narrow, row + i, v);
    }
}

// ---- loss --------------------------------------------------------------------------------------

// Loss and hit (0 or 1) of each row of logits, with the cap on them that there may be, and the
// gradient of the logits unless `dz` is null. With s = Σ_{j≠t} exp(z_j - m), e = exp(z_t - m):
// L = m - z_t + log(s + e), whose derivative at the target is -s/(s + e).
extern "C" __global__ void cross_entropy(const float* z, const unsigned* targets, double* found,
                                         void* dz, int narrow, int classes, float cap) {
    index_t row = (index_t)blockIdx.x * classes;
    int target = targets[blockIdx.x];
    float most = -3.402823466e+38f, sum = 0;
    for (int i = threadIdx.x; i < classes; i += blockDim.x)
        most = fmaxf(most, capped(z[row + i], 1.0f, cap));
    most = of_block<Max>(most, -3.402823466e+38f);
    int first = classes;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        float v = capped(z[row + i], 1.0f, cap);
        if (v == most) first = min(first, i);
        if (i != target) sum += expf(v - most);
    }
    first = of_block<Min>(first, classes);
    double others = of_block<Sum>(sum, 0.0f);
    double below = (double)most - capped(z[row + target], 1.0f, cap);
    double all = others + exp(-below);
    if (threadIdx.x == 0) {
        found[2 * blockIdx.x] = below + log(all);
        found[2 * blockIdx.x + 1] = first == target;
    }
    if (!dz) return;
    float size = (float)all, own = (float)(-others / all);
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        float v = capped(z[row + i], 1.0f, cap);
        float d = i == target ? own : expf(v - most) / size;
        if (cap > 0.0f) d *= 1.0f - v / cap * (v / cap);
        store(dz, narrow, row + i, d);
    }
}

// ---- dropout -----------------------------------------------------------------------------------

// The words of Philox4x32-10, as in random.rs.
__device__ unsigned philox(unsigned long long row, unsigned block, unsigned long long key, int which) {
    unsigned c0 = (unsigned)row, c1 = (unsigned)(row >> 32), c2 = block, c3 = 0;
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned a = __umulhi(0xD2511F53u, c0), a_low = 0xD2511F53u * c0;
        unsigned b = __umulhi(0xCD9E8D57u, c2), b_low = 0xCD9E8D57u * c2;
        c0 = b ^ c1 ^ k0;
        c1 = b_low;
        c2 = a ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return which == 0 ? c0 : which == 1 ? c1 : which == 2 ? c2 : c3;
}

// y = x·mask: 0 where a row's random word is below the threshold, otherwise `keep`.
extern "C" __global__ void dropout(const float* x, const unsigned long long* rows, float* y, index_t n,
                                   int columns, unsigned long long key, unsigned threshold,
                                   float keep) {
    index_t i = place();
    if (i >= n) return;
    unsigned column = (unsigned)(i % columns);
    unsigned word = philox(rows[i / columns], column / 4, key, column % 4);
    y[i] = x[i] * (word < threshold ? 0.0f : keep);
}

// ---- optimizer ---------------------------------------------------------------------------------

// AdamW's update where parameter and moments lie, in the order of operations of the processor's.
extern "C" __global__ void adamw(float* p, const float* g, float* mean, float* square, index_t n, float keep, float new_mean,
                                 float old_square, float new_square, float size, float root,
                                 float epsilon) {
    index_t i = place();
    if (i >= n) return;
    float m = mean[i] + (g[i] - mean[i]) * new_mean;
    float v = square[i] * old_square + g[i] * g[i] * new_square;
    mean[i] = m;
    square[i] = v;
    p[i] = p[i] * keep - size * (m / (sqrtf(v) / root + epsilon));
}

// Sums of squares, one for each block.
extern "C" __global__ void square_sums(const float* x, double* sums, index_t n) {
    double sum = 0;
    for (index_t i = place(); i < n; i += (index_t)gridDim.x * blockDim.x)
        sum += (double)x[i] * x[i];
    sum = of_block<Sum>(sum, 0.0);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
