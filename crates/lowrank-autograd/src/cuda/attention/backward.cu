// Attention in tiles, backward. Scores are made twice, once for the gradient of queries and once for
// those of keys and values, so that a block has all that it sums up to itself.

// Σ dy·y of each row and head, which is what the softmax's gradient subtracts; and dy in bf16. A warp
// has a row of a head.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_delta(const __grid_constant__ Call call) {
    index_t i = (index_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (i >= (index_t)call.n * call.heads) return;
    const unsigned* y = (const unsigned*)call.y + i * (HEAD_DIM / 2);
    const unsigned* narrow = (const unsigned*)call.dy + i * (HEAD_DIM / 2);
    const float2* wide = (const float2*)call.dy + i * (HEAD_DIM / 2);
    unsigned* place = (unsigned*)call.narrow_dy + i * (HEAD_DIM / 2);
    float sum = 0;
    for (int c = threadIdx.x & 31; c < HEAD_DIM / 2; c += 32) {
        unsigned pair = call.narrow_dy ? packed(wide[c].x, wide[c].y) : narrow[c];
        if (call.narrow_dy) place[c] = pair;
        sum += __uint_as_float(pair << 16) * __uint_as_float(y[c] << 16);
        sum += __uint_as_float(pair & 0xFFFF0000) * __uint_as_float(y[c] & 0xFFFF0000);
    }
    for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
    if (!(threadIdx.x & 31)) call.delta[i % call.heads * call.n + i / call.heads] = sum;
}

// From the products z of query and key and those of dy and the value: the probability, in place of
// the first, and the gradient of the first without the scale, in place of the second.
__device__ void gradients(const Call& call, float lse, float delta, float& z, float& d) {
    float slope, s = score(call, z, &slope);
    z = power_of_2(s - lse);
    d = z * (d - delta) * slope;
}

// dq = scale·ds·k, a tile of queries for each block.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_queries(const __grid_constant__ Call call) {
    constexpr int TILES = QUERY_TILES, COUNT = 16 * TILES * WARPS;
    Queries<COUNT> at(call);
    int own = threadIdx.x / 32 * 16 * TILES;
    bf16 *q = shared, *dy = q + COUNT * PITCH, *tiles = dy + COUNT * PITCH;
    float dq[TILES][HEAD_DIM / 8][4], lse[TILES][2], delta[TILES][2], scale[TILES][2];
    clear(dq);
    index_t first = (index_t)at.head * call.n + at.first + own;
    for (int i = 0; i < 2 * TILES; i++) {
        int tile = i / 2, half = i % 2, row = row_of(tile, half);
        bool there = own + row < at.rows;
        lse[tile][half] = there ? call.lse[first + row] : INFINITE;
        delta[tile][half] = there ? call.delta[first + row] : 0.0f;
        scale[tile][half] = call.scale;
    }
    fetch<COUNT>(q, call.q + at.query, call.heads * HEAD_DIM, at.rows);
    fetch<COUNT>(dy, (const bf16*)call.dy + at.query, call.heads * HEAD_DIM, at.rows);
    if (at.start < at.end) fetch_keys(call, tiles, at.key, at.start, at.end);
    for (int key = at.start, turn = 0; key < at.end; key += KEYS, turn ^= 1) {
        copied();
        __syncthreads();
        bf16 *k = tiles + turn * 2 * KEYS * PITCH, *v = k + KEYS * PITCH;
        bf16* next = tiles + (turn ^ 1) * 2 * KEYS * PITCH;
        if (key + KEYS < at.end) fetch_keys(call, next, at.key, key + KEYS, at.end);
        float z[TILES][KEYS / 8][4], d[TILES][KEYS / 8][4];
        clear(z);
        clear(d);
        products(z, q + own * PITCH, k);
        products(d, dy + own * PITCH, v);
#pragma unroll
        for (int i = 0; i < TILES * KEYS / 2; i++) {
            int tile = i / (KEYS / 2), n = i / 4 % (KEYS / 8), e = i % 4, half = e / 2;
            gradients(call, lse[tile][half], delta[tile][half], z[tile][n][e], d[tile][n][e]);
        }
        if (!at.see_all(call, key)) hide(d, 0.0f, at.seen(call, own, key));
        add_weighted(dq, d, k);
    }
    bf16* place = call.dq + at.query + (index_t)own * call.heads * HEAD_DIM;
    write(place, call.heads * HEAD_DIM, at.rows - own, dq, scale);
}

// A tile of a key head, and the queries that may see it.
template <int COUNT> struct Keys {
    int kv_head, part, heads, before, rows, start, end, offset;
    index_t query, key;  // the first query's row, and the tile's first element

    __device__ Keys(const Call& call) {
        kv_head = blockIdx.x % call.kv_heads;
        part = blockIdx.x / call.kv_heads % call.parts;
        heads = call.heads / call.kv_heads / call.parts;
        int tile = blockIdx.x / call.kv_heads / call.parts;
        const Span& span = span_of(call, tile);
        before = (tile - span.first_tile) * COUNT;
        rows = min(COUNT, span.keys - before);
        offset = span.offset;
        start = call.causal ? max(0, before - offset) : 0;
        end = min(span.queries, before + rows - 1 - offset + call.window);
        query = span.query;
        key = ((index_t)(span.key + before) * call.kv_heads + kv_head) * HEAD_DIM;
    }
};

// Begins to copy queries and gradients of a head, and their `lse` and `delta` behind them.
__device__ void fetch_queries(const Call& call, bf16* tile, index_t row, int head, int rows) {
    int width = call.heads * HEAD_DIM;
    index_t at = row * width + head * HEAD_DIM, number = (index_t)head * call.n + row;
    fetch<QUERIES>(tile, call.q + at, width, rows);
    fetch<QUERIES>(tile + QUERIES * PITCH, (const bf16*)call.dy + at, width, rows);
    float* numbers = (float*)(tile + 2 * QUERIES * PITCH);
    for (int i = threadIdx.x; i < 2 * QUERIES; i += THREADS) {
        int query = i % QUERIES;
        const float* from = i < QUERIES ? call.lse : call.delta;
        copy4(numbers + i, from + number + (query < rows ? query : 0), query < rows);
    }
}

// Writes a part of the gradient in f32.
template <int TILES>
__device__ void write_part(float* to, int width, int rows,
                           const float (&sums)[TILES][HEAD_DIM / 8][4]) {
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int tile = i / 2, half = i % 2, row = row_of(tile, half);
        if (row >= rows) continue;
        float2* place = (float2*)(to + (index_t)row * width) + threadIdx.x % 4;
#pragma unroll
        for (int c = 0; c < HEAD_DIM / 8; c++)
            place[c * 4] = make_float2(sums[tile][c][2 * half], sums[tile][c][2 * half + 1]);
    }
}

// dv = pᵀ·dy and dk = scale·dsᵀ·q, a tile of keys for each block. Scores are made with keys as rows:
// then what is summed up is the left factor of both. Of the query heads that share the keys a block
// goes over a part.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_keys(const __grid_constant__ Call call) {
    constexpr int TILES = KEY_TILES, COUNT = 16 * TILES * WARPS;
    constexpr int STAGE = 2 * QUERIES * PITCH + 4 * QUERIES;
    Keys<COUNT> at(call);
    int own = threadIdx.x / 32 * 16 * TILES;
    int width = call.kv_heads * HEAD_DIM;
    bf16 *k = shared, *v = k + COUNT * PITCH, *stages = v + COUNT * PITCH;
    float dk[TILES][HEAD_DIM / 8][4], dv[TILES][HEAD_DIM / 8][4];
    clear(dk);
    clear(dv);
    fetch<COUNT>(k, call.k + at.key, width, at.rows);
    fetch<COUNT>(v, call.v + at.key, width, at.rows);
    int first_head = (at.kv_head * call.parts + at.part) * at.heads;
    int last_head = first_head + (at.start < at.end ? at.heads : 0);
    auto begin = [&](int turn, int head, int query) {
        fetch_queries(call, stages + turn * STAGE, at.query + query, head, at.end - query);
    };
    if (first_head < last_head) begin(0, first_head, at.start);
    for (int head = first_head, query = at.start, turn = 0; head < last_head; turn ^= 1) {
        int position = at.offset + query;
        query += QUERIES;
        if (query >= at.end) query = at.start, head++;
        copied();
        __syncthreads();
        if (head < last_head) begin(turn ^ 1, head, query);
        bf16 *q = stages + turn * STAGE, *dy = q + QUERIES * PITCH;
        const float* lse = (const float*)(dy + QUERIES * PITCH);
        float p[TILES][QUERIES / 8][4], ds[TILES][QUERIES / 8][4];
        clear(p);
        clear(ds);
        products(p, k + own * PITCH, q);
        products(ds, v + own * PITCH, dy);
#pragma unroll
        for (int i = 0; i < TILES * QUERIES / 2; i++) {
            int tile = i / (QUERIES / 2), n = i / 4 % (QUERIES / 8), e = i % 4;
            int column = 8 * n + threadIdx.x % 4 * 2 + e % 2;
            gradients(call, lse[column], lse[QUERIES + column], p[tile][n][e], ds[tile][n][e]);
        }
        if (!all_see(call, position, QUERIES, at.before, COUNT)) {
            auto seen = [&](int row, int column) {
                return sees(call, position + column, at.before + own + row);
            };
            hide(p, 0.0f, seen);
            hide(ds, 0.0f, seen);
        }
        add_weighted(dv, p, dy);
        add_weighted(dk, ds, q);
    }
    index_t place = at.key + (index_t)own * width;
    float one[TILES][2], scale[TILES][2];
    for (int i = 0; i < 2 * TILES; i++) one[i / 2][i % 2] = 1, scale[i / 2][i % 2] = call.scale;
    if (call.parts == 1) {
        write(call.dk + place, width, at.rows - own, dk, scale);
        write(call.dv + place, width, at.rows - own, dv, one);
    } else {
        place += (index_t)at.part * call.m * width;
        write_part(call.dk_parts + place, width, at.rows - own, dk);
        write_part(call.dv_parts + place, width, at.rows - own, dv);
    }
}

// dk and dv from their parts, two numbers of each for a thread.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_sum_parts(const __grid_constant__ Call call) {
    index_t n = (index_t)call.m * call.kv_heads * HEAD_DIM / 2;
    index_t i = (index_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float2 dk = make_float2(0, 0), dv = make_float2(0, 0);
    for (int part = 0; part < call.parts; part++) {
        float2 a = ((const float2*)call.dk_parts)[part * n + i];
        float2 b = ((const float2*)call.dv_parts)[part * n + i];
        dk.x += a.x, dk.y += a.y, dv.x += b.x, dv.y += b.y;
    }
    ((unsigned*)call.dk)[i] = packed(dk.x * call.scale, dk.y * call.scale);
    ((unsigned*)call.dv)[i] = packed(dv.x, dv.y);
}
