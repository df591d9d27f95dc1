// What attention in tiles is made of, forward and backward (FlashAttention-2, arXiv:2307.08691): scores
// are made a tile at a time on tensor cores and never leave registers. These files are one program
// (see attention.rs), compiled at run time for one width of heads, with or without a cap; constants
// in capitals that aren't defined here come from there.
//
// q, y, dq [n, heads·HEAD_DIM] and k, v, dk, dv [m, kv_heads·HEAD_DIM] are bf16, read and written
// where they lie; `lse` and `delta` [heads, n] are f32. A block has a tile of the rows of one head
// and goes over the other side's tiles, of which the next is on its way while one is worked on. Sums
// are f32 in an order of their own, without atomics: a result doesn't change between runs.

typedef unsigned short bf16;
typedef long long index_t;

// A sequence, its first row of q and of k and v, and the first of its tiles among all.
struct Span {
    int first_tile, query, queries, key, keys, offset;
};

// As in attention.rs.
struct Call {
    const bf16 *q, *k, *v;
    bf16* y;
    float* lse;          // log₂ of the sum of the exponentials of a row's scores; ∞ if it has none
    const void* dy;      // f32 or bf16 for `attention_delta`, otherwise bf16
    bf16* narrow_dy;     // null if dy is bf16
    float* delta;        // Σ dy·y of a row
    bf16 *dq, *dk, *dv;
    float *dk_parts, *dv_parts;  // [parts, m, kv_heads·HEAD_DIM], null if there is one part
    int n, m, heads, kv_heads, parts;
    float scale, inner, outer;  // see `score`
    int causal, window, spans;
    Span span[SPANS];
};

constexpr int WARPS = THREADS / 32;
// Elements from row to row in shared memory: 16 bytes more than a row has, so that the eight rows
// that `matrices` reads at a time lie in different banks.
constexpr int PITCH = HEAD_DIM + 8;
#define INFINITE __uint_as_float(0x7F800000)

extern __shared__ __align__(16) bf16 shared[];

// ---- instructions ------------------------------------------------------------------------------

__device__ unsigned shared_address(const void* x) { return (unsigned)__cvta_generic_to_shared(x); }

// Begins to copy 16 or 4 bytes to shared memory; zeros unless they are `there`.
__device__ void copy16(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 16 : 0)
                 : "memory");
}
__device__ void copy4(void* to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}

// Waits for what the thread has begun to copy.
__device__ void copied() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four matrices of 8×8, whose rows are where the lanes point, eight lanes after the other: a lane gets
// two neighbours of row lane/4 of each.
__device__ void matrices(unsigned (&x)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same of the transposed matrices.
__device__ void transposed(unsigned (&x)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sum += a·b, 16×16 by 16×8.
__device__ void multiply(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded to bf16, the first in the lower half.
__device__ unsigned packed(float first, float second) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
    return both;
}

__device__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- tiles -------------------------------------------------------------------------------------
//
// A warp has TILES of 16 rows. What it sums up lies as the instruction leaves it: elements 0, 1
// of [tile][n] are at row lane/4 and columns 8n + 2(lane%4), + 1; 2, 3 are eight rows below.

// Begins to copy the first COUNT rows of a head; zeros beyond the first `rows`.
template <int COUNT> __device__ void fetch(bf16* tile, const bf16* from, int width, int rows) {
    constexpr int PIECES = HEAD_DIM / 8;
#pragma unroll
    for (int i = threadIdx.x; i < COUNT * PIECES; i += THREADS) {
        int row = i / PIECES, column = i % PIECES * 8;
        bool there = row < rows;
        index_t at = (index_t)(there ? row : 0) * width + column;
        copy16(tile + row * PITCH + column, from + at, there);
    }
}

// sums += a·bᵀ, for the warp's rows of a and 8·N rows of b.
template <int TILES, int N>
__device__ void products(float (&sums)[TILES][N][4], const bf16* a, const bf16* b) {
    int lane = threadIdx.x & 31;
    a += (lane & 15) * PITCH + (lane >> 4) * 8;
    b += ((lane & 7) + (lane >> 4) * 8) * PITCH + (lane >> 3 & 1) * 8;
#pragma unroll
    for (int i = 0; i < HEAD_DIM; i += 16) {
        unsigned left[TILES][4], right[4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) matrices(left[tile], a + tile * 16 * PITCH + i);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            matrices(right, b + n * 8 * PITCH + i);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply(sums[tile][n], left[tile], right[0], right[1]);
                multiply(sums[tile][n + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

// sums += w·b, where w is rounded to bf16: sums of columns 16i.. are what the instruction wants to
// have as its left factor. b has 8·N rows.
template <int TILES, int N>
__device__ void add_weighted(float (&sums)[TILES][HEAD_DIM / 8][4], const float (&w)[TILES][N][4],
                             const bf16* b) {
    int lane = threadIdx.x & 31;
    b += (lane & 15) * PITCH + (lane >> 4) * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        unsigned left[TILES][4], right[4];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&from)[4] = w[tile][n + i / 2];
                left[tile][i] = packed(from[i % 2 * 2], from[i % 2 * 2 + 1]);
            }
        }
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 8; c += 2) {
            transposed(right, b + n * 8 * PITCH + c * 8);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                multiply(sums[tile][c], left[tile], right[0], right[1]);
                multiply(sums[tile][c + 1], left[tile], right[2], right[3]);
            }
        }
    }
}

template <int TILES, int N> __device__ void clear(float (&sums)[TILES][N][4]) {
#pragma unroll
    for (int i = 0; i < TILES * N * 4; i++) sums[i / 4 / N][i / 4 % N][i % 4] = 0;
}

// The row of a warp's tile that elements 2·half and 2·half + 1 belong to.
__device__ int row_of(int tile, int half) { return tile * 16 + half * 8 + (threadIdx.x & 31) / 4; }

// Writes `factor` times the first `rows` of the warp's rows in bf16.
template <int TILES>
__device__ void write(bf16* to, int width, int rows, const float (&sums)[TILES][HEAD_DIM / 8][4],
                      const float (&factor)[TILES][2]) {
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int tile = i / 2, half = i % 2, row = row_of(tile, half);
        if (row >= rows) continue;
        unsigned* place = (unsigned*)(to + (index_t)row * width) + threadIdx.x % 4;
        float by = factor[tile][half];
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 8; c++) {
            const float(&from)[4] = sums[tile][c];
            place[c * 4] = packed(from[2 * half] * by, from[2 * half + 1] * by);
        }
    }
}

// ---- scores ------------------------------------------------------------------------------------

// A score in powers of 2, from the product z of query and key: log₂e·scale·z, with inner =
// log₂e·scale; or log₂e·cap·t of t = tanh(scale·z/cap), with inner = 2·log₂e·scale/cap and outer =
// log₂e·cap. `slope` is what the score's derivative has beside the scale: 1 - t².
__device__ float score(const Call& call, float z, float* slope) {
#if CAPPED
    float t = 1.0f - __fdividef(2.0f, 1.0f + power_of_2(z * call.inner));
    *slope = 1.0f - t * t;
    return t * call.outer;
#else
    *slope = 1.0f;
    return z * call.inner;
#endif
}

// Whether the query at `position` sees a key of its sequence.
__device__ bool sees(const Call& call, int position, int key) {
    return !(call.causal && key > position) && key > position - call.window;
}

// Hides columns from the warp's rows wherever `seen` of both says no: a pass of its own, which most
// tiles don't need.
template <int TILES, int N, typename Seen>
__device__ void hide(float (&x)[TILES][N][4], float hidden, Seen seen) {
#pragma unroll
    for (int i = 0; i < TILES * N * 4; i++) {
        int tile = i / 4 / N, n = i / 4 % N, e = i % 4;
        float& at = x[tile][n][e];
        at = seen(row_of(tile, e / 2), 8 * n + threadIdx.x % 4 * 2 + e % 2) ? at : hidden;
    }
}

// Whether each of these queries sees each of these keys.
__device__ bool all_see(const Call& call, int position, int queries, int key, int keys) {
    return sees(call, position, key + keys - 1) && sees(call, position + queries - 1, key);
}

// The sequence that a tile belongs to.
__device__ const Span& span_of(const Call& call, int tile) {
    int i = 0;
    while (i + 1 < call.spans && call.span[i + 1].first_tile <= tile) i++;
    return call.span[i];
}

// A tile of a head's queries and the keys that they may see; the last tiles, which see most, come
// first.
template <int COUNT> struct Queries {
    int head, kv_head, first, rows, position, start, end;
    index_t query, key;  // the first elements of the tile, and of the sequence's keys

    __device__ Queries(const Call& call) {
        head = blockIdx.x % call.heads;
        kv_head = head / (call.heads / call.kv_heads);
        int tile = (gridDim.x - 1 - blockIdx.x) / call.heads;
        const Span& span = span_of(call, tile);
        int before = (tile - span.first_tile) * COUNT;
        first = span.query + before;
        rows = min(COUNT, span.queries - before);
        position = span.offset + before;
        start = max(0, position - call.window + 1);
        end = call.causal ? min(span.keys, position + rows) : span.keys;
        query = ((index_t)first * call.heads + head) * HEAD_DIM;
        key = ((index_t)span.key * call.kv_heads + kv_head) * HEAD_DIM;
    }

    // Whether every query sees every key of the tile that begins at `key`.
    __device__ bool see_all(const Call& call, int key) const {
        return key + KEYS <= end && all_see(call, position, COUNT, key, KEYS);
    }

    // What each of a warp's rows, which begin at `own`, sees of that tile.
    __device__ auto seen(const Call& call, int own, int key) const {
        return [=, &call](int row, int column) {
            return key + column < end && sees(call, position + own + row, key + column);
        };
    }
};

// Begins to copy keys and values from `key` on.
__device__ void fetch_keys(const Call& call, bf16* tile, index_t first, int key, int end) {
    int width = call.kv_heads * HEAD_DIM;
    index_t at = first + (index_t)key * width;
    fetch<KEYS>(tile, call.k + at, width, end - key);
    fetch<KEYS>(tile + KEYS * PITCH, call.v + at, width, end - key);
}
