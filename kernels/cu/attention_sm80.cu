// Forward attention over packed sequences on tensor cores (mma.sync): bf16, heads of 64 elements, sm_80 and newer.
//
//   out = dropout(softmax(q k^T / 8)) v
//
// q [R, 64] and k, v [T, 64] are heads of rows of packed buffers (strides in AttentionSizes), aligned to 16 bytes; out [R, H].
// Saved for backward: out and lse [heads, R], the log-sum-exp of each query's scaled scores.
//
// A block has 128 queries of one head of one sequence, 32 to a warp, whose fragments stay in registers; the keys and values
// come in tiles of 64, copied while the tile before is worked on. Scores never leave the registers: softmax runs along with
// the keys (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018; Dao, "FlashAttention-2", 2023), and
// rounded to bf16 the weights are the operand of the second product as they lie. Scores and sums are f32.
//
// Bound by the tensor cores: 4 n^2 64 FLOPs for each head of a sequence of n tokens; with dropout by the integer units as
// well, one call of Philox for 16 weights. Bytes are few: 8 n 64 and, from the second-level cache, keys and values once more
// for every 128 queries.
//
// Relied on: a sequence has at most as many queries as the longest one has keys, which the grid is made for, and a sequence
// with queries has keys.
#include "common/attention_mma.cuh"

namespace attention {

constexpr int QUERIES = 128, WARP_ROWS = QUERIES / WARPS;

// A warp's 32 queries: rows 16 m + lane / 4 + 8 h are index [m][h].
struct ForwardQueries {
    Fragment q[2][HEAD / 16];
    Accumulator out[2][CHUNKS];
    float largest[2][2];  // score so far, unscaled
    float total[2][2];    // of this lane's keys, relative to the largest
    unsigned row_key[2][2];
};

// One step of the softmax over a tile's scores of rows [m][h]. The weights, relative to the largest score so far, are rounded
// into those rows of the second product's operand, of which step k takes 16 keys.
template <bool DROPOUT>
__device__ __forceinline__ void online_softmax(ForwardQueries& own, Fragment (&p)[2][TILE / 16], Accumulator (&scores)[TILE / 8], int m, int h,
                                               float scale_log2, const Philox& kept) {
    float most = own.largest[m][h];
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            most = fmaxf(most, scores[n].at[2 * h + e]);
        }
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
    const float base = most * scale_log2, shrink = fast_exp2(own.largest[m][h] * scale_log2 - base);
    own.largest[m][h] = most;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        const float low = fast_exp2(fmaf(scores[n].at[2 * h], scale_log2, -base));
        const float high = fast_exp2(fmaf(scores[n].at[2 * h + 1], scale_log2, -base));
        sum += low + high;
        unsigned& word = p[m][n / 2].at[n % 2 * 2 + h];
        word = pack_bf16(low, high);
        // Bytes 0 and 1 of a word of the draw belong to an even n, 2 and 3 to an odd one.
        if (DROPOUT) word &= spread_signs(kept.at[n / 2], 0, n % 2 == 0 ? 0x9988 : 0xbbaa);
    }
    own.total[m][h] = fmaf(own.total[m][h], shrink, sum);
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) own.out[m][n].at[2 * h] *= shrink, own.out[m][n].at[2 * h + 1] *= shrink;
}

// The warp's queries and one tile of keys, of which `keys` exist.
template <bool DROPOUT>
__device__ __forceinline__ void forward_tile(ForwardQueries& own, unsigned char* k_tile, unsigned char* v_tile, int keys, float scale_log2,
                                             const Dropout& dropout, unsigned head, unsigned block) {
    Accumulator scores[2][TILE / 8] = {};
#pragma unroll
    for (int n = 0; n < TILE / 16; n++) {
        if (16 * n >= keys) break;
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
            const Fragment b = load_b_of_columns(k_tile, 16 * n, k);
#pragma unroll
            for (int m = 0; m < 2; m++) mma_pair(scores[m][2 * n], scores[m][2 * n + 1], own.q[m][k], b);
        }
    }
    if (keys < TILE) {
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            if (i / 4 * 8 + 2 * (lane_id() % 4) + i % 2 < keys) continue;
#pragma unroll
            for (int m = 0; m < 2; m++) scores[m][i / 4].at[i % 4] = -INFINITY;
        }
    }
    Fragment p[2][TILE / 16];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            Philox kept = {};
            if (DROPOUT) kept = kept_weights(dropout, own.row_key[m][h], head, block, lane_id() % 4);
            online_softmax<DROPOUT>(own, p, scores[m], m, h, scale_log2, kept);
        }
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        if (16 * k >= keys) break;
#pragma unroll
        for (int n = 0; n < HEAD / 16; n++) {
            const Fragment b = load_b_of_rows(v_tile, 16 * k, n);
#pragma unroll
            for (int m = 0; m < 2; m++) mma_pair(own.out[m][2 * n], own.out[m][2 * n + 1], p[m][k], b);
        }
    }
}

// Outputs and log-sum-exps of the warp's queries, as far as they are below `rows`; q_tile's rows of the warp are free.
__device__ __forceinline__ void finish(ForwardQueries& own, bf16* out, size_t stride, float* lse, unsigned char* q_tile, int rows, float scale,
                                       float dropout_scale) {
    const int first = warp_id() * WARP_ROWS;
#pragma unroll
    for (int m = 0; m < 2; m++) {
        float factor[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = own.total[m][h];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            factor[h] = dropout_scale / total;
            const int row = first + 16 * m + 8 * h + lane_id() / 4;
            if (lane_id() % 4 == 0 && row < rows) lse[row] = fmaf(own.largest[m][h], scale, logf(total));
        }
        round_to_tile(q_tile, first + 16 * m, own.out[m], factor[0], factor[1]);
    }
    __syncwarp();
    store_tile<WARP_ROWS>(out, stride, q_tile, first, rows);
}

template <bool DROPOUT>
__device__ __forceinline__ void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const AttentionSizes& s,
                                        const Dropout& dropout) {
    const AttentionTask task = attention_task(s);
    const unsigned first = blockIdx.x * QUERIES;
    if (first >= task.queries) return;
    SHARED_DYNAMIC(unsigned char, shared);
    unsigned char *q_tile = shared, *kv_tiles = shared + QUERIES * ROW_BYTES;
    const int rows = static_cast<int>(min(task.queries - first, static_cast<unsigned>(QUERIES)));
    const int tiles = static_cast<int>((task.keys + TILE - 1) / TILE);
    const size_t row = task.q_start + first, at = attention_offset(task.k_start, s.kv_stride, task, HEAD);
    const auto keys_of = [&](int tile) { return static_cast<int>(min(task.keys - tile * TILE, static_cast<unsigned>(TILE))); };
    const auto copy_keys = [&](int tile) {
        unsigned char* to = kv_tiles + tile % 2 * 2 * TILE_BYTES;
        const size_t from = at + static_cast<size_t>(tile) * TILE * s.kv_stride;
        copy_tile<TILE>(to, k + from, s.kv_stride, keys_of(tile));
        copy_tile<TILE>(to + TILE_BYTES, v + from, s.kv_stride, keys_of(tile));
        commit_copies();
    };
    copy_tile<QUERIES>(q_tile, q + attention_offset(row, s.q_stride, task, HEAD), s.q_stride, rows);
    if (tiles > 0) copy_keys(0);
    wait_copies<0>();
    __syncthreads();

    ForwardQueries own = {};
    const int warp_row = warp_id() * WARP_ROWS;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int step = 0; step < HEAD / 16; step++) own.q[m][step] = load_a(q_tile, warp_row + 16 * m, step);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int query = warp_row + 16 * m + 8 * h + lane_id() / 4;
            own.largest[m][h] = -INFINITY;
            if (DROPOUT && query < rows) own.row_key[m][h] = dropout.row_keys[row + query];
        }
    }
    const float scale_log2 = s.scale * LOG2_E;
    for (int tile = 0; tile < tiles; tile++) {
        wait_copies<0>();
        __syncthreads();  // this tile has come, and the one before, whose place the next one takes, has been read
        if (tile + 1 < tiles) copy_keys(tile + 1);
        if (warp_row >= rows) continue;
        unsigned char *k_tile = kv_tiles + tile % 2 * 2 * TILE_BYTES, *v_tile = k_tile + TILE_BYTES;
        forward_tile<DROPOUT>(own, k_tile, v_tile, keys_of(tile), scale_log2, dropout, task.head, tile);
    }
    if (warp_row >= rows) return;
    const unsigned hidden = s.heads * HEAD;
    finish(own, out + attention_offset(row, hidden, task, HEAD), hidden, lse + static_cast<size_t>(task.head) * s.queries + row, q_tile, rows,
           s.scale, DROPOUT ? dropout.scale : 1.0f);
}

}  // namespace attention

extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)
    attention_sm80_forward_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, AttentionSizes s, Dropout dropout) {
    attention::forward<false>(out, lse, q, k, v, s, dropout);
}
EXPORT(attention_sm80_forward_bf16)

extern "C" __global__ void __launch_bounds__(attention::THREADS, 2)
    attention_sm80_forward_dropout_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, AttentionSizes s, Dropout dropout) {
    attention::forward<true>(out, lse, q, k, v, s, dropout);
}
EXPORT(attention_sm80_forward_dropout_bf16)
