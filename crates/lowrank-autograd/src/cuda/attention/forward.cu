// Attention in tiles, forward: y = softmax(score(q·kᵀ))·v.

__device__ float most_of_four(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ float sum_of_four(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Products of a tile become exponentials of scores less the largest so far, and what was summed up
// of earlier tiles is made to fit. Four lanes share a row; `sum` is of a lane's own columns.
template <int TILES, int N>
__device__ void exponentials(float (&z)[TILES][N][4], float (&y)[TILES][HEAD_DIM / 8][4],
                             float (&most)[TILES][2], float (&sum)[TILES][2]) {
#pragma unroll
    for (int i = 0; i < 2 * TILES; i++) {
        int tile = i / 2, half = i % 2;
        float largest = most[tile][half];
#pragma unroll
        for (int j = 0; j < 2 * N; j++) largest = fmaxf(largest, z[tile][j / 2][2 * half + j % 2]);
        largest = most_of_four(largest);
        float base = largest == -INFINITE ? 0.0f : largest;  // a row that sees no key yet
        float fade = power_of_2(most[tile][half] - base), added = 0;
        most[tile][half] = largest;
#pragma unroll
        for (int j = 0; j < 2 * N; j++) {
            float& p = z[tile][j / 2][2 * half + j % 2];
            p = power_of_2(p - base);
            added += p;
        }
        sum[tile][half] = sum[tile][half] * fade + added;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 4; j++) y[tile][j / 2][2 * half + j % 2] *= fade;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(const __grid_constant__ Call call) {
    constexpr int TILES = FORWARD_TILES, COUNT = 16 * TILES * WARPS;
    Queries<COUNT> at(call);
    int own = threadIdx.x / 32 * 16 * TILES;
    bf16 *q = shared, *tiles = q + COUNT * PITCH;
    float y[TILES][HEAD_DIM / 8][4], most[TILES][2], sum[TILES][2];
    clear(y);
    for (int i = 0; i < 2 * TILES; i++) most[i / 2][i % 2] = -INFINITE, sum[i / 2][i % 2] = 0;
    fetch<COUNT>(q, call.q + at.query, call.heads * HEAD_DIM, at.rows);
    if (at.start < at.end) fetch_keys(call, tiles, at.key, at.start, at.end);
    for (int key = at.start, turn = 0; key < at.end; key += KEYS, turn ^= 1) {
        copied();
        __syncthreads();
        bf16 *k = tiles + turn * 2 * KEYS * PITCH, *v = k + KEYS * PITCH;
        bf16* next = tiles + (turn ^ 1) * 2 * KEYS * PITCH;
        if (key + KEYS < at.end) fetch_keys(call, next, at.key, key + KEYS, at.end);
        float z[TILES][KEYS / 8][4];
        clear(z);
        products(z, q + own * PITCH, k);
#pragma unroll
        for (int i = 0; i < TILES * KEYS / 2; i++) {
            float &x = z[i / (KEYS / 2)][i / 4 % (KEYS / 8)][i % 4], slope;
            x = score(call, x, &slope);
        }
        if (!at.see_all(call, key)) hide(z, -INFINITE, at.seen(call, own, key));
        exponentials(z, y, most, sum);
        add_weighted(y, z, v);
    }
    float* lse = call.lse + (index_t)at.head * call.n + at.first + own;
    for (int i = 0; i < 2 * TILES; i++) {
        int tile = i / 2, half = i % 2, row = row_of(tile, half);
        float all = sum_of_four(sum[tile][half]);
        sum[tile][half] = all == 0 ? 0.0f : 1.0f / all;
        if (threadIdx.x % 4 == 0 && own + row < at.rows)
            lse[row] = all == 0 ? INFINITE : most[tile][half] + log2f(all);
    }
    bf16* place = call.y + at.query + (index_t)own * call.heads * HEAD_DIM;
    write(place, call.heads * HEAD_DIM, at.rows - own, y, sum);
}
