// Attention over packed sequences: out = dropout(softmax(q k^T / sqrt(d))) v, for any head size d up to 128, f32 and bf16,
// without tensor cores. Everything between the loads and the stores is f32.
//
// q [R, d] and k, v [T, d] are heads of rows of packed buffers (strides in AttentionSizes); out [R, H], lse [heads, R].
// Saved for backward: out and lse, the log-sum-exp of a query's scaled scores. Backward computes the scores again and replays
// the dropout. With p = exp(s - lse), m = 0 or 1 / (1 - rate) and D = dout . out:
//   dv = (p m)^T dout, ds = p (m (dout v^T) - D), dq = ds k / sqrt(d), dk = ds^T q / sqrt(d).
// One kernel makes D and dq, a second one dk and dv from D: each sums in a fixed order, without atomics.
//
// A block keeps ROWS rows (queries; in the second backward kernel keys) of one head of one sequence, and streams the other
// side through shared memory. Thread (tx, ty) of 16 x 8 has rows 4 ty + i and columns tx + 16 j of a tile of scores, and
// rows 4 ty + i and columns 4 tx + c + 64 h of the outputs, so that a row belongs to half a warp in both.
//
// Bound by the f32 units: 4 n^2 d FLOPs forward and 14 n^2 d backward for each head of a sequence of n tokens.
//
// Relied on: a sequence has at most as many queries as the longest one has keys, which the grid is made for, and a sequence
// with queries has keys.
#include "common/attention.cuh"

namespace {

constexpr int THREADS = 128, ROWS = 32;
// Columns of a tile of scores: keys where rows are queries, queries where rows are keys.
constexpr int KEYS = 64, QUERIES = 32;
// Bytes of the draws of a query and 64 keys.
constexpr int DRAWS = 64;

// A head's elements in shared memory, rounded up, and the elements from one row to the next: 4 times an odd number, so that
// vectors of 4 at one column of eight rows lie in different banks.
__device__ __forceinline__ int padded(int d) { return (d + 7) / 8 * 8; }
__device__ __forceinline__ int tile_stride(int d) { return padded(d) + 4; }
// Elements from one row of a tile of scores to the next.
__device__ __forceinline__ constexpr int score_stride(int columns) { return columns + 4; }

template <int N, typename T>
__device__ __forceinline__ void load_tile_by(float* tile, const T* rows, size_t stride, int count, int valid, int d) {
    const int chunks = padded(d) / N;
    for (int i = threadIdx.x; i < count * chunks; i += THREADS) {
        const int row = i / chunks, column = i % chunks * N;
        Vec<T, N> x;
        const bool inside = row < valid && column < d;
        if (inside) x = load<N>(rows + row * stride + column);
#pragma unroll
        for (int e = 0; e < N; e++) tile[row * tile_stride(d) + column + e] = inside ? widen(x.at[e]) : 0.0f;
    }
}

// Rows of one head to shared memory, zeros from row `valid` and from column d on.
template <typename T>
__device__ __forceinline__ void load_tile(float* tile, const T* rows, size_t stride, int count, int valid, const AttentionSizes& s) {
    const int d = static_cast<int>(s.head_size);
    if (s.wide)
        load_tile_by<WIDE<T>>(tile, rows, stride, count, valid, d);
    else
        load_tile_by<1>(tile, rows, stride, count, valid, d);
}

// Outputs times `factor[i]` to rows 4 ty + i of one head, as far as they are below `valid`.
template <typename T>
__device__ __forceinline__ void store_rows(T* rows, size_t stride, const float (&acc)[4][8], const float (&factor)[4], int valid,
                                           const AttentionSizes& s, int tx, int ty) {
    const int d = static_cast<int>(s.head_size);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (4 * ty + i >= valid) return;
        T* row = rows + (4 * ty + i) * stride;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int column = 4 * tx + 64 * half;
            Vec<T, 4> y;
#pragma unroll
            for (int e = 0; e < 4; e++) y.at[e] = narrow<T>(acc[i][4 * half + e] * factor[i]);
            if (s.wide) {
                if (column < d) store<4>(row + column, y);
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (column + e < d) row[column + e] = y.at[e];
            }
        }
    }
}

// acc[i][j] = a[4 ty + i] . b[tx + 16 j]
template <int N>
__device__ __forceinline__ void dots(float (&acc)[4][N], const float* a, const float* b, int d, int tx, int ty) {
    const int stride = tile_stride(d);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < N; j++) acc[i][j] = 0.0f;
    for (int k = 0; k < d; k += 4) {
        Vec<float, 4> y[N];
#pragma unroll
        for (int j = 0; j < N; j++) y[j] = load<4>(b + (tx + 16 * j) * stride + k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Vec<float, 4> x = load<4>(a + (4 * ty + i) * stride + k);
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[i][j] = fmaf(x.at[e], y[j].at[e], acc[i][j]);
        }
    }
}

// acc[i] += sum over n < count of w[4 ty + i][n] x[n]; w is 0 and x finite up to the next multiple of 4 of `count`.
template <int COLUMNS>
__device__ __forceinline__ void accumulate(float (&acc)[4][8], const float* w, const float* x, int count, int d, int tx, int ty) {
    const int stride = tile_stride(d);
    for (int n = 0; n < count; n += 4) {
        Vec<float, 4> p[4];
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = load<4>(w + (4 * ty + i) * score_stride(COLUMNS) + n);
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int column = 4 * tx + 64 * half;
                if (column >= d) continue;
                const Vec<float, 4> y = load<4>(x + (n + e) * stride + column);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++) acc[i][4 * half + c] = fmaf(p[i].at[e], y.at[c], acc[i][4 * half + c]);
            }
    }
}

__device__ __forceinline__ void clear(float (&acc)[4][8]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int c = 0; c < 8; c++) acc[i][c] = 0.0f;
}

// Draws the bytes of 32 queries, of which `valid` exist, and 64 keys: one call of the generator a thread.
__device__ __forceinline__ void draw_tile(unsigned char* draws, const Dropout& dropout, unsigned first_query, int valid, unsigned head,
                                          unsigned block) {
    const int query = threadIdx.x / 4, quad = threadIdx.x % 4;
    if (dropout.threshold == 0 || query >= valid) return;
    const Philox draw = attention_draw(dropout, dropout.row_keys[first_query + query], head, block, quad);
    store<4>(reinterpret_cast<unsigned*>(draws + query * DRAWS + 16 * quad), Vec<unsigned, 4>{{draw.at[0], draw.at[1], draw.at[2], draw.at[3]}});
}

// The factor of the weight of a query of the tile and a key of its block of 64.
__device__ __forceinline__ float dropout_factor(const unsigned char* draws, const Dropout& dropout, int query, int key) {
    if (dropout.threshold == 0) return 1.0f;
    return draws[query * DRAWS + key % 8 / 2 * 16 + key / 8 * 2 + key % 2] < dropout.threshold ? 0.0f : dropout.scale;
}

// Sum and maximum over the 16 threads of a row.
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

template <typename T>
__device__ __forceinline__ void forward(T* out, float* lse, const T* q, const T* k, const T* v, const AttentionSizes& s, const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * ROWS;
    if (first >= task.queries) return;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, d = static_cast<int>(s.head_size);
    const int rows = static_cast<int>(min(task.queries - first, static_cast<unsigned>(ROWS)));
    SHARED_DYNAMIC(float, shared);
    float* q_tile = shared;
    float* kv_tile = q_tile + ROWS * tile_stride(d);
    float* p_tile = kv_tile + KEYS * tile_stride(d);
    unsigned char* draws = reinterpret_cast<unsigned char*>(p_tile + ROWS * score_stride(KEYS));

    const size_t row = task.q_start + first;
    load_tile(q_tile, q + attention_offset(row, s.q_stride, task, s.head_size), s.q_stride, ROWS, rows, s);
    float acc[4][8], largest[4], total[4];
    clear(acc);
#pragma unroll
    for (int i = 0; i < 4; i++) largest[i] = -INFINITY, total[i] = 0.0f;
    for (unsigned start = 0; start < task.keys; start += KEYS) {
        const int keys = static_cast<int>(min(task.keys - start, static_cast<unsigned>(KEYS)));
        const size_t at = attention_offset(task.k_start + start, s.kv_stride, task, s.head_size);
        __syncthreads();  // the values of the keys before have been read
        load_tile(kv_tile, k + at, s.kv_stride, KEYS, keys, s);
        draw_tile(draws, dropout, static_cast<unsigned>(row), rows, task.head, start / KEYS);
        __syncthreads();
        float p[4][KEYS / 16];
        dots(p, q_tile, kv_tile, d, tx, ty);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float most = largest[i], sum = 0.0f;
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                p[i][j] = tx + 16 * j < keys ? p[i][j] * s.scale : -INFINITY;
                most = fmaxf(most, p[i][j]);
            }
            most = row_max(most);
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                const int key = tx + 16 * j;
                const float x = expf(p[i][j] - most);
                sum += x;
                p_tile[(4 * ty + i) * score_stride(KEYS) + key] = x * dropout_factor(draws, dropout, 4 * ty + i, key);
            }
            const float shrink = expf(largest[i] - most);
            total[i] = total[i] * shrink + row_sum(sum);
            largest[i] = most;
#pragma unroll
            for (int c = 0; c < 8; c++) acc[i][c] *= shrink;
        }
        __syncthreads();  // the keys have been read
        load_tile(kv_tile, v + at, s.kv_stride, KEYS, keys, s);
        __syncthreads();
        accumulate<KEYS>(acc, p_tile, kv_tile, keys, d, tx, ty);
    }
    float inverse[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        inverse[i] = 1.0f / total[i];
        if (tx == 0 && 4 * ty + i < rows) lse[static_cast<size_t>(task.head) * s.queries + row + 4 * ty + i] = largest[i] + logf(total[i]);
    }
    const unsigned hidden = s.heads * s.head_size;
    store_rows(out + attention_offset(row, hidden, task, s.head_size), hidden, acc, inverse, rows, s, tx, ty);
}

// D of the block's queries, to shared memory and, for the second kernel, to `delta` [heads, R]. Four threads sum a row.
template <typename T>
__device__ __forceinline__ void row_deltas(float* delta_tile, float* delta, const float* dout_tile, const T* out, size_t stride, int rows, int d) {
    const int row = threadIdx.x / 4, part = threadIdx.x % 4;
    float sum = 0.0f;
    if (row < rows)
        for (int c = part; c < d; c += 4) sum = fmaf(dout_tile[row * tile_stride(d) + c], widen(out[row * stride + c]), sum);
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    if (part != 0) return;
    delta_tile[row] = sum;
    if (row < rows) delta[row] = sum;
}

template <typename T>
__device__ __forceinline__ void backward_dq(T* dq, float* delta, const T* dout, const T* q, const T* k, const T* v, const T* out, const float* lse,
                                            const AttentionSizes& s, const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * ROWS, hidden = s.heads * s.head_size;
    if (first >= task.queries) return;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, d = static_cast<int>(s.head_size);
    const int rows = static_cast<int>(min(task.queries - first, static_cast<unsigned>(ROWS)));
    SHARED_DYNAMIC(float, shared);
    float* q_tile = shared;
    float* dout_tile = q_tile + ROWS * tile_stride(d);
    float* kv_tile = dout_tile + ROWS * tile_stride(d);
    float* ds_tile = kv_tile + KEYS * tile_stride(d);
    float* delta_tile = ds_tile + ROWS * score_stride(KEYS);
    unsigned char* draws = reinterpret_cast<unsigned char*>(delta_tile + ROWS);

    const size_t row = task.q_start + first, saved = static_cast<size_t>(task.head) * s.queries + row;
    const size_t q_at = attention_offset(row, s.q_stride, task, s.head_size), out_at = attention_offset(row, hidden, task, s.head_size);
    load_tile(q_tile, q + q_at, s.q_stride, ROWS, rows, s);
    load_tile(dout_tile, dout + out_at, hidden, ROWS, rows, s);
    __syncthreads();
    row_deltas(delta_tile, delta + saved, dout_tile, out + out_at, hidden, rows, d);
    float row_lse[4], acc[4][8];
    clear(acc);
#pragma unroll
    for (int i = 0; i < 4; i++) row_lse[i] = 4 * ty + i < rows ? lse[saved + 4 * ty + i] : INFINITY;
    for (unsigned start = 0; start < task.keys; start += KEYS) {
        const int keys = static_cast<int>(min(task.keys - start, static_cast<unsigned>(KEYS)));
        const size_t at = attention_offset(task.k_start + start, s.kv_stride, task, s.head_size);
        float dp[4][KEYS / 16], p[4][KEYS / 16];
        __syncthreads();  // the keys before have been read
        load_tile(kv_tile, v + at, s.kv_stride, KEYS, keys, s);
        draw_tile(draws, dropout, static_cast<unsigned>(row), rows, task.head, start / KEYS);
        __syncthreads();
        dots(dp, dout_tile, kv_tile, d, tx, ty);
        __syncthreads();  // the values have been read
        load_tile(kv_tile, k + at, s.kv_stride, KEYS, keys, s);
        __syncthreads();
        dots(p, q_tile, kv_tile, d, tx, ty);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                const int query = 4 * ty + i, key = tx + 16 * j;
                const float m = dropout_factor(draws, dropout, query, key);
                const float ds = expf(p[i][j] * s.scale - row_lse[i]) * (m * dp[i][j] - delta_tile[query]);
                ds_tile[query * score_stride(KEYS) + key] = key < keys ? ds : 0.0f;
            }
        __syncwarp();  // a row of ds_tile is read by the half warp that wrote it
        accumulate<KEYS>(acc, ds_tile, kv_tile, keys, d, tx, ty);
    }
    const float scale[4] = {s.scale, s.scale, s.scale, s.scale};
    store_rows(dq + q_at, s.q_stride, acc, scale, rows, s, tx, ty);
}

template <typename T>
__device__ __forceinline__ void backward_dkv(T* dk, T* dv, const float* delta, const T* dout, const T* q, const T* k, const T* v, const float* lse,
                                             const AttentionSizes& s, const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * ROWS, hidden = s.heads * s.head_size;
    if (first >= task.keys) return;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, d = static_cast<int>(s.head_size);
    const int rows = static_cast<int>(min(task.keys - first, static_cast<unsigned>(ROWS)));
    SHARED_DYNAMIC(float, shared);
    float* k_tile = shared;
    float* v_tile = k_tile + ROWS * tile_stride(d);
    float* q_tile = v_tile + ROWS * tile_stride(d);
    float* dout_tile = q_tile + QUERIES * tile_stride(d);
    float* p_tile = dout_tile + QUERIES * tile_stride(d);
    float* ds_tile = p_tile + ROWS * score_stride(QUERIES);
    float* lse_tile = ds_tile + ROWS * score_stride(QUERIES);
    float* delta_tile = lse_tile + QUERIES;
    unsigned char* draws = reinterpret_cast<unsigned char*>(delta_tile + QUERIES);

    const size_t at = attention_offset(task.k_start + first, s.kv_stride, task, s.head_size);
    load_tile(k_tile, k + at, s.kv_stride, ROWS, rows, s);
    load_tile(v_tile, v + at, s.kv_stride, ROWS, rows, s);
    float dk_acc[4][8], dv_acc[4][8];
    clear(dk_acc);
    clear(dv_acc);
    for (unsigned start = 0; start < task.queries; start += QUERIES) {
        const int queries = static_cast<int>(min(task.queries - start, static_cast<unsigned>(QUERIES)));
        const size_t row = task.q_start + start, saved = static_cast<size_t>(task.head) * s.queries + row;
        __syncthreads();  // the queries before have been read
        load_tile(q_tile, q + attention_offset(row, s.q_stride, task, s.head_size), s.q_stride, QUERIES, queries, s);
        load_tile(dout_tile, dout + attention_offset(row, hidden, task, s.head_size), hidden, QUERIES, queries, s);
        if (static_cast<int>(threadIdx.x) < QUERIES) {
            const bool inside = static_cast<int>(threadIdx.x) < queries;
            lse_tile[threadIdx.x] = inside ? lse[saved + threadIdx.x] : INFINITY;
            delta_tile[threadIdx.x] = inside ? delta[saved + threadIdx.x] : 0.0f;
        }
        draw_tile(draws, dropout, static_cast<unsigned>(row), queries, task.head, first / DRAWS);
        __syncthreads();
        float p[4][QUERIES / 16], dp[4][QUERIES / 16];
        dots(p, k_tile, q_tile, d, tx, ty);
        dots(dp, v_tile, dout_tile, d, tx, ty);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < QUERIES / 16; j++) {
                const int query = tx + 16 * j, at = (4 * ty + i) * score_stride(QUERIES) + query;
                const float m = dropout_factor(draws, dropout, query, static_cast<int>(first) % DRAWS + 4 * ty + i);
                const float x = expf(p[i][j] * s.scale - lse_tile[query]);
                p_tile[at] = query < queries ? x * m : 0.0f;
                ds_tile[at] = query < queries ? x * (m * dp[i][j] - delta_tile[query]) : 0.0f;
            }
        __syncwarp();  // rows of both tiles are read by the half warp that wrote them
        accumulate<QUERIES>(dv_acc, p_tile, dout_tile, queries, d, tx, ty);
        accumulate<QUERIES>(dk_acc, ds_tile, q_tile, queries, d, tx, ty);
    }
    const float one[4] = {1.0f, 1.0f, 1.0f, 1.0f}, scale[4] = {s.scale, s.scale, s.scale, s.scale};
    store_rows(dv + at, s.kv_stride, dv_acc, one, rows, s, tx, ty);
    store_rows(dk + at, s.kv_stride, dk_acc, scale, rows, s, tx, ty);
}

}  // namespace

#define ATTENTION_ANY(name, T)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) attention_any_forward_##name(T* out, float* lse, const T* q, const T* k,    \
                                                                                       const T* v, AttentionSizes s, Dropout drop) { \
        forward<T>(out, lse, q, k, v, s, drop);                                                                                       \
    }                                                                                                                                 \
    EXPORT(attention_any_forward_##name)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 3)                                                                             \
        attention_any_dq_##name(T* dq, float* delta, const T* dout, const T* q, const T* k, const T* v, const T* out,                 \
                                const float* lse, AttentionSizes s, Dropout drop) {                                                   \
        backward_dq<T>(dq, delta, dout, q, k, v, out, lse, s, drop);                                                                  \
    }                                                                                                                                 \
    EXPORT(attention_any_dq_##name)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                             \
        attention_any_dkv_##name(T* dk, T* dv, const float* delta, const T* dout, const T* q, const T* k, const T* v,                 \
                                 const float* lse, AttentionSizes s, Dropout drop) {                                                  \
        backward_dkv<T>(dk, dv, delta, dout, q, k, v, lse, s, drop);                                                                  \
    }                                                                                                                                 \
    EXPORT(attention_any_dkv_##name)

ATTENTION_ANY(f32, float)
ATTENTION_ANY(bf16, bf16)
