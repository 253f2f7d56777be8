// Backward attention over packed sequences on tensor cores (mma.sync): bf16, heads of 64 elements, sm_80 and newer.
//
// From out and lse [heads, R], which forward saved, the scores are computed again and the dropout is replayed. With
// p = exp(s - lse), m = 0 or 1 / (1 - rate) and D = dout . out:
//   dv = (p m)^T dout, ds = p (m (dout v^T) - D), dq = ds k / 8, dk = ds^T q / 8.
//
// Two kernels, so that each sum has one owner and one order, without atomics. The first has 128 queries a block, 32 to a warp,
// streams keys and values in tiles of 64, and makes dq and D [heads, R]. The second has 64 keys a block, 16 to a warp, streams
// queries and dout in tiles of 64, and makes dk and dv from D. It computes the scores transposed, keys by queries, so that p and
// ds, rounded to bf16, are operands as they lie: nothing but the draws of dropout passes from warp to warp. What a block keeps
// stays in registers; a tile is copied while the tile before is worked on.
//
// Bound by the tensor cores: 14 n^2 64 FLOPs for each head of a sequence of n tokens (6 in the first kernel, 8 in the second),
// twice computing the scores and dout v^T; with dropout by the integer units as well. Bytes are few, 16 n 64 and what the
// second-level cache gives again.
//
// Relied on: a sequence has at most as many queries as the longest one has keys, which the grids are made for.
#include "common/attention_mma.cuh"

namespace attention {

constexpr int QUERIES = 128, QUERY_ROWS = QUERIES / WARPS;
constexpr int KEYS = 64, KEY_ROWS = KEYS / WARPS;
static_assert(KEY_ROWS == 16 && QUERY_ROWS == 32, "a warp has one A of keys and two of queries");

// A warp's 32 queries: rows 16 m + lane / 4 + 8 h are index [m][h].
struct BackwardQueries {
    Fragment q[2][HEAD / 16], dout[2][HEAD / 16];
    Accumulator dq[2][CHUNKS];
    float lse_log2[2][2], delta[2][2];
    unsigned row_key[2][2];
};

// ds of the 16 keys of a step, as the operand of the product with k; the tile has `keys` keys.
template <bool DROPOUT>
__device__ __forceinline__ void query_scores(Fragment (&ds)[2], const BackwardQueries& own, unsigned char* k_tile, unsigned char* v_tile, int step, int keys,
                                             float scale_log2, float dropout_scale, const Philox (&kept)[2][2]) {
    Accumulator s[2][2] = {}, dp[2][2] = {};
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        const Fragment key = load_b_of_columns(k_tile, 16 * step, k), value = load_b_of_columns(v_tile, 16 * step, k);
#pragma unroll
        for (int m = 0; m < 2; m++) {
            mma_pair(s[m][0], s[m][1], own.q[m][k], key);
            mma_pair(dp[m][0], dp[m][1], own.dout[m][k], value);
        }
    }
    if (16 * step + 16 > keys) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (16 * step + i / 4 * 8 + 2 * (lane_id() % 4) + i % 2 < keys) continue;
#pragma unroll
            for (int m = 0; m < 2; m++) s[m][i / 4].at[i % 4] = -INFINITY;
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const float p = fast_exp2(fmaf(s[m][n].at[2 * h + e], scale_log2, -own.lse_log2[m][h]));
                    float gradient = dp[m][n].at[2 * h + e];
                    if (DROPOUT) gradient = masked(gradient, spread_signs(kept[m][h].at[step], 0, 0x8888 + 0x1111 * (2 * n + e))) * dropout_scale;
                    x[e] = p * (gradient - own.delta[m][h]);
                }
                ds[m].at[2 * n + h] = pack_bf16(x[0], x[1]);
            }
}

template <bool DROPOUT>
__device__ __forceinline__ void query_tile(BackwardQueries& own, unsigned char* k_tile, unsigned char* v_tile, int keys, float scale_log2,
                                           const Dropout& dropout, unsigned head, unsigned block) {
    Philox kept[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (DROPOUT) kept[m][h] = kept_weights(dropout, own.row_key[m][h], head, block, lane_id() % 4);
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) {
        if (16 * step >= keys) break;
        Fragment ds[2];
        query_scores<DROPOUT>(ds, own, k_tile, v_tile, step, keys, scale_log2, dropout.scale, kept);
#pragma unroll
        for (int n = 0; n < HEAD / 16; n++) {
            const Fragment b = load_b_of_rows(k_tile, 16 * step, n);
#pragma unroll
            for (int m = 0; m < 2; m++) mma_pair(own.dq[m][2 * n], own.dq[m][2 * n + 1], ds[m], b);
        }
    }
}

// The products of elements that a lane holds of two rows, h = 0 and 1.
__device__ __forceinline__ float row_product(const Fragment& x, const Fragment& y, int h) {
    float sum = 0.0f;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const unsigned a = x.at[2 * side + h], b = y.at[2 * side + h];
        sum = fmaf(low_bf16(a), low_bf16(b), fmaf(high_bf16(a), high_bf16(b), sum));
    }
    return sum;
}

// Takes the warp's queries from tiles of q, dout and out; writes D as far as rows are below `rows`.
template <bool DROPOUT>
__device__ __forceinline__ void load_queries(BackwardQueries& own, unsigned char* q_tile, unsigned char* dout_tile, unsigned char* out_tile, float* delta,
                                             const float* lse, const unsigned* row_keys, int rows) {
    const int first = warp_id() * QUERY_ROWS;
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
            own.q[m][k] = load_a(q_tile, first + 16 * m, k);
            own.dout[m][k] = load_a(dout_tile, first + 16 * m, k);
            const Fragment out = load_a(out_tile, first + 16 * m, k);
#pragma unroll
            for (int h = 0; h < 2; h++) sum[h] += row_product(own.dout[m][k], out, h);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 1);
            sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 2);
            const int row = first + 16 * m + 8 * h + lane_id() / 4;
            own.delta[m][h] = sum[h];
            own.lse_log2[m][h] = row < rows ? lse[row] * LOG2_E : INFINITY;
            own.row_key[m][h] = DROPOUT && row < rows ? row_keys[row] : 0;
            if (lane_id() % 4 == 0 && row < rows) delta[row] = sum[h];
        }
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void backward_dq(bf16* dq, float* delta, const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                                            const float* lse, const AttentionSizes& s, const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * QUERIES, hidden = s.heads * HEAD;
    if (first >= task.queries) return;
    SHARED_DYNAMIC(unsigned char, shared);
    unsigned char *q_tile = shared, *dout_tile = q_tile + QUERIES * ROW_BYTES, *kv_tiles = dout_tile + QUERIES * ROW_BYTES;
    unsigned char* out_tile = kv_tiles + 2 * TILE_BYTES;  // the place of the second tile of keys and values
    const int rows = static_cast<int>(min(task.queries - first, static_cast<unsigned>(QUERIES)));
    const int tiles = static_cast<int>((task.keys + TILE - 1) / TILE);
    const size_t row = task.q_start + first, at = attention_offset(task.k_start, s.kv_stride, task, HEAD);
    const size_t q_at = attention_offset(row, s.q_stride, task, HEAD), out_at = attention_offset(row, hidden, task, HEAD);
    const size_t saved = static_cast<size_t>(task.head) * s.queries + row;
    const auto keys_of = [&](int tile) { return static_cast<int>(min(task.keys - tile * TILE, static_cast<unsigned>(TILE))); };
    const auto copy_keys = [&](int tile) {
        unsigned char* to = kv_tiles + tile % 2 * 2 * TILE_BYTES;
        const size_t from = at + static_cast<size_t>(tile) * TILE * s.kv_stride;
        copy_tile<TILE>(to, k + from, s.kv_stride, keys_of(tile));
        copy_tile<TILE>(to + TILE_BYTES, v + from, s.kv_stride, keys_of(tile));
        commit_copies();
    };
    copy_tile<QUERIES>(q_tile, q + q_at, s.q_stride, rows);
    copy_tile<QUERIES>(dout_tile, dout + out_at, hidden, rows);
    copy_tile<QUERIES>(out_tile, out + out_at, hidden, rows);
    commit_copies();
    if (tiles > 0) copy_keys(0);
    wait_copies<0>();
    __syncthreads();

    BackwardQueries own = {};
    const int warp_row = warp_id() * QUERY_ROWS;
    load_queries<DROPOUT>(own, q_tile, dout_tile, out_tile, delta + saved, lse + saved, dropout.row_keys + row, rows);
    const float scale_log2 = s.scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        wait_copies<0>();
        __syncthreads();  // this tile has come, and what lay in the next one's place has been read
        if (tile + 1 < tiles) copy_keys(tile + 1);
        if (warp_row >= rows) continue;
        unsigned char *k_tile = kv_tiles + tile % 2 * 2 * TILE_BYTES, *v_tile = k_tile + TILE_BYTES;
        query_tile<DROPOUT>(own, k_tile, v_tile, keys_of(tile), scale_log2, dropout, task.head, tile);
    }
    if (warp_row >= rows) return;
#pragma unroll
    for (int m = 0; m < 2; m++) round_to_tile(q_tile, warp_row + 16 * m, own.dq[m], s.scale, s.scale);
    __syncwarp();
    store_tile<QUERY_ROWS>(dq + q_at, s.q_stride, q_tile, warp_row, rows);
}

// What the second kernel needs to know of a tile of queries besides q and dout: (lse log2 e, D) of each query, and which weights
// are kept, as kept_weights has it: word w of query and quad, for the 16 keys of warp w.
struct QueryTile {
    float stats[TILE][2];
    unsigned kept[WARPS][TILE][4];
};

// A thread's part of the next QueryTile, on its way from memory.
struct QueryLoads {
    float stat;
    unsigned row_key;
};

template <bool DROPOUT>
__device__ __forceinline__ QueryLoads load_query_tile(const float* lse, const float* delta, const unsigned* row_keys, int queries) {
    const int t = threadIdx.x, query = t % TILE;
    QueryLoads loads = {};
    // Past the end a weight is exp2(-infinity).
    if (t < TILE)
        loads.stat = query < queries ? lse[query] * LOG2_E : INFINITY;
    else
        loads.stat = query < queries ? delta[query] : 0.0f;
    if (DROPOUT && t / 2 < queries) loads.row_key = row_keys[t / 2];
    return loads;
}

template <bool DROPOUT>
__device__ __forceinline__ void make_query_tile(QueryTile& tile, const QueryLoads& loads, const Dropout& dropout, unsigned head, unsigned block) {
    const int t = threadIdx.x;
    tile.stats[t % TILE][t / TILE] = loads.stat;
    if (!DROPOUT) return;
    const int quad = t % 2 * 2;
    const Philox left = kept_weights(dropout, loads.row_key, head, block, quad);
    const Philox right = kept_weights(dropout, loads.row_key, head, block, quad + 1);
#pragma unroll
    for (int w = 0; w < WARPS; w++) store<2>(&tile.kept[w][t / 2][quad], Vec<unsigned, 2>{{left.at[w], right.at[w]}});
}

// A warp's 16 keys.
struct Keys {
    Fragment k[HEAD / 16], v[HEAD / 16];
    Accumulator dk[CHUNKS], dv[CHUNKS];
};

// Weights and ds of the warp's keys and 16 queries from `first` of the tile on, transposed, as operands of the products with
// dout and q.
template <bool DROPOUT>
__device__ __forceinline__ void key_scores(Fragment& p, Fragment& ds, const Keys& own, unsigned char* q_tile, unsigned char* dout_tile,
                                           const QueryTile& tile, int first, float scale_log2, float dropout_scale) {
    Accumulator s[2] = {}, dp[2] = {};
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        mma_pair(s[0], s[1], own.k[k], load_b_of_columns(q_tile, first, k));
        mma_pair(dp[0], dp[1], own.v[k], load_b_of_columns(dout_tile, first, k));
    }
    const int row = lane_id() / 4, quad = lane_id() % 4, byte = row % 2;
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int query = first + 8 * n + 2 * quad;
        const Vec<float, 4> stats = load<4>(&tile.stats[query][0]);
        unsigned kept[2] = {0, 0};
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (DROPOUT) kept[e] = tile.kept[warp_id()][query + e][row / 2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float weight[2], gradient[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                weight[e] = fast_exp2(fmaf(s[n].at[2 * h + e], scale_log2, -stats.at[2 * e]));
                float x = dp[n].at[2 * h + e];
                if (DROPOUT) x = masked(x, spread_signs(kept[e], 0, 0x8888 + 0x1111 * (byte + 2 * h))) * dropout_scale;
                gradient[e] = weight[e] * (x - stats.at[2 * e + 1]);
            }
            unsigned& word = p.at[2 * n + h];
            word = pack_bf16(weight[0], weight[1]);
            if (DROPOUT) word &= spread_signs(kept[0], kept[1], 0xcc88 + 0x1111 * (byte + 2 * h));
            ds.at[2 * n + h] = pack_bf16(gradient[0], gradient[1]);
        }
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void key_tile(Keys& own, unsigned char* q_tile, unsigned char* dout_tile, const QueryTile& tile, int queries,
                                         float scale_log2, float dropout_scale) {
#pragma unroll 1
    for (int first = 0; first < queries; first += 16) {
        Fragment p, ds;
        key_scores<DROPOUT>(p, ds, own, q_tile, dout_tile, tile, first, scale_log2, dropout_scale);
#pragma unroll
        for (int n = 0; n < HEAD / 16; n++) {
            mma_pair(own.dv[2 * n], own.dv[2 * n + 1], p, load_b_of_rows(dout_tile, first, n));
            mma_pair(own.dk[2 * n], own.dk[2 * n + 1], ds, load_b_of_rows(q_tile, first, n));
        }
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void backward_dkv(bf16* dk, bf16* dv, const float* delta, const bf16* dout, const bf16* q, const bf16* k, const bf16* v,
                                             const float* lse, const AttentionSizes& s, const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * KEYS, hidden = s.heads * HEAD;
    if (first >= task.keys) return;
    SHARED_DYNAMIC(unsigned char, shared);
    unsigned char *tiles_at = shared, *kv_tile = tiles_at + 2 * TILE_BYTES;  // the place of the second tile of q and dout
    QueryTile* query_tiles = reinterpret_cast<QueryTile*>(tiles_at + 4 * TILE_BYTES);
    const int rows = static_cast<int>(min(task.keys - first, static_cast<unsigned>(KEYS)));
    const int tiles = static_cast<int>((task.queries + TILE - 1) / TILE);
    const size_t at = attention_offset(task.k_start + first, s.kv_stride, task, HEAD);
    const size_t saved = static_cast<size_t>(task.head) * s.queries + task.q_start;
    const auto queries_of = [&](int tile) { return static_cast<int>(min(task.queries - tile * TILE, static_cast<unsigned>(TILE))); };
    const auto copy_queries = [&](int tile) {
        unsigned char* to = tiles_at + tile % 2 * 2 * TILE_BYTES;
        const size_t row = task.q_start + static_cast<size_t>(tile) * TILE;
        copy_tile<TILE>(to, q + attention_offset(row, s.q_stride, task, HEAD), s.q_stride, queries_of(tile));
        copy_tile<TILE>(to + TILE_BYTES, dout + attention_offset(row, hidden, task, HEAD), hidden, queries_of(tile));
        commit_copies();
    };
    const auto load_tile = [&](int tile) {
        const size_t from = static_cast<size_t>(tile) * TILE;
        return load_query_tile<DROPOUT>(lse + saved + from, delta + saved + from, dropout.row_keys + task.q_start + from, queries_of(tile));
    };
    const auto make_tile = [&](int tile, const QueryLoads& loads) {
        make_query_tile<DROPOUT>(query_tiles[tile % 2], loads, dropout, task.head, blockIdx.x);
    };
    static_assert(KEYS == TILE, "blocks of keys are the blocks of draws");
    copy_tile<KEYS>(kv_tile, k + at, s.kv_stride, rows);
    copy_tile<KEYS>(kv_tile + TILE_BYTES, v + at, s.kv_stride, rows);
    commit_copies();
    if (tiles > 0) {
        copy_queries(0);
        make_tile(0, load_tile(0));
    }
    wait_copies<0>();
    __syncthreads();

    Keys own = {};
    const int warp_row = warp_id() * KEY_ROWS;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) {
        own.k[step] = load_a(kv_tile, warp_row, step);
        own.v[step] = load_a(kv_tile + TILE_BYTES, warp_row, step);
    }
    const float scale_log2 = s.scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        wait_copies<0>();
        __syncthreads();  // this tile has come, and what lay in the next one's place has been read
        const bool more = tile + 1 < tiles;
        QueryLoads loads = {};
        if (more) {
            copy_queries(tile + 1);
            loads = load_tile(tile + 1);
        }
        unsigned char *q_tile = tiles_at + tile % 2 * 2 * TILE_BYTES, *dout_tile = q_tile + TILE_BYTES;
        if (warp_row < rows) key_tile<DROPOUT>(own, q_tile, dout_tile, query_tiles[tile % 2], queries_of(tile), scale_log2, dropout.scale);
        if (more) make_tile(tile + 1, loads);
    }
    __syncthreads();  // the tiles have been read
    if (warp_row >= rows) return;
    const float v_factor = DROPOUT ? dropout.scale : 1.0f;
    round_to_tile(tiles_at, warp_row, own.dk, s.scale, s.scale);
    round_to_tile(tiles_at + TILE_BYTES, warp_row, own.dv, v_factor, v_factor);
    __syncwarp();
    store_tile<KEY_ROWS>(dk + at, s.kv_stride, tiles_at, warp_row, rows);
    store_tile<KEY_ROWS>(dv + at, s.kv_stride, tiles_at + TILE_BYTES, warp_row, rows);
}

}  // namespace attention

// Blocks of a multiprocessor, which bound the registers: the first kernel's fragments and sums leave room for two, the second
// kernel's for three.
#define ATTENTION_SM80_BACKWARD(name, dropout)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)                                                                           \
        attention_sm80_dq##name##_bf16(bf16* dq, float* delta, const bf16* dout, const bf16* q, const bf16* k, const bf16* v, const bf16* out,   \
                                       const float* lse, AttentionSizes s, Dropout drop) {                                                        \
        attention::backward_dq<dropout>(dq, delta, dout, q, k, v, out, lse, s, drop);                                                             \
    }                                                                                                                                             \
    EXPORT(attention_sm80_dq##name##_bf16)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(attention::THREADS, 3)                                                                           \
        attention_sm80_dkv##name##_bf16(bf16* dk, bf16* dv, const float* delta, const bf16* dout, const bf16* q, const bf16* k, const bf16* v,    \
                                        const float* lse, AttentionSizes s, Dropout drop) {                                                       \
        attention::backward_dkv<dropout>(dk, dv, delta, dout, q, k, v, lse, s, drop);                                                             \
    }                                                                                                                                             \
    EXPORT(attention_sm80_dkv##name##_bf16)

ATTENTION_SM80_BACKWARD(, false)
ATTENTION_SM80_BACKWARD(_dropout, true)
