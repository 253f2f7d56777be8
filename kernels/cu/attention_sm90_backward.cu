// Backward attention over packed sequences for sm_90a in one pass (TMA, wgmma): bf16, heads of 64 elements, up to 512
// keys.
//
// The math, the layouts and what is saved are those of attention_sm80_backward.cu:
//   p = exp(s - lse), dv = (p m)^T dout, ds = p (m dout v^T - D), dq = ds k / 8, dk = ds^T q / 8.
//
// A block works on one head of one sequence at a time, on all of it, so that each sum has one owner and one order,
// without atomics. Blocks of 128 keys are the outer loop, tiles of 64 queries the inner one. Two warpgroups have 64
// keys each, as rows of transposed products: k q^T and v dout^T with k and v in registers; p and ds, rounded, are as
// they lie the operands of the products with dout and q, whose sums dv and dk stay in registers. ds also goes to shared
// memory, as a tile [keys, queries], for the third warpgroup: it multiplies it with k into dq, which is kept in shared
// memory over the blocks of keys, in f32, each thread reading and writing places of its own. It also feeds a ring of
// four stages of 16 KiB: k, v, then (q, dout) of each tile, with lse and D, which it makes of dout and out at the first
// block of keys. No warpgroup waits for another but through the ring and the one tile of ds, so that one's exponentials
// run beside the other's products.
//
// Rows of keys are in an order in which a warp's 16 are those of one call of Philox (key_of_row), so that dropout
// passes from lane to lane in one word. The order holds for ds and for the copy of k that dq is made with, too.
//
// Reckoning for 128 keys and 64 queries (5.2 MFLOP), in cycles of a multiprocessor. Tensor cores: 1,280. Shared memory
// at 128 bytes a cycle: operands 512 (k and v are in registers) and 256 (dq: both), ds 128, sums of dq 192, copies 128,
// the rest 190: 1,400. Exponentials: 512. Issue: 346 instructions a warp of keys, 635 with dropout, of two warps in
// each scheduler, and about 250 of the third warpgroup's: 950, 1,520. So 3,900 cycles, which are 300 TFLOP/s at 132
// multiprocessors and 1.7 GHz, are 2.5 times the largest of these. Shared memory: ring 64 KiB, dq 128, ds 16, k 16, the
// rest 3 of 227; so one block runs.
//
// Relied on: a sequence has at most 512 keys and at most 512 queries, and one with queries has keys. Rows of a tile
// past the end of a sequence are the next one's, or zeros, and take part with weights of 0: what is not finite spreads
// to a neighbour.
#include "common/attention_sm90_queries.cuh"

namespace attention {

// A warpgroup's 64 keys.
struct OwnKeys {
    Fragment k[HEAD / 16], v[HEAD / 16];
    float dk[HEAD / 2], dv[HEAD / 2];
};

// Transposed scores become weights: p, rounded and masked, is the operand of the product with dout. s keeps them
// unmasked, those that are dropped with their signs set.
template <bool DROPOUT>
__device__ __forceinline__ void weigh(Fragment (&p)[TILE / 16], float (&s)[TILE / 2], const float* lse_log2,
                                      unsigned kept, float scale_log2) {
    unsigned query[2] = {};
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        const int n = i / 2 + i % 2 * 4;  // a chunk of queries, then that of 32 further
        const Vec<float, 2> base = load<2>(lse_log2 + 8 * n + 2 * (lane_id() % 4));
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (DROPOUT && i % 2 == 0) query[e] = kept_query(kept, n, e);
            const unsigned rows = DROPOUT ? kept_rows(query[e], i % 2) : 0;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float& x = s[4 * n + 2 * h + e];
                x = fast_exp2(fmaf(x, scale_log2, -base.at[e]));
                if (DROPOUT) x = signed_weight(x, rows << (16 * h));
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float low = s[4 * n + 2 * h], high = s[4 * n + 2 * h + 1];
            p[n / 2].at[n % 2 * 2 + h] = DROPOUT ? pack_kept(low, high) : pack_bf16(low, high);
        }
    }
}

// ds of those weights, rounded. Rows of keys that do not exist become zeros.
template <bool DROPOUT>
__device__ __forceinline__ void score_gradients(Fragment (&ds)[TILE / 16], const float (&p)[TILE / 2],
                                                const float (&dp)[TILE / 2], const float* delta,
                                                const bool (&exists)[2]) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        const Vec<float, 2> d = load<2>(delta + 8 * n + 2 * (lane_id() % 4));
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float x[2];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float weight = p[4 * n + 2 * h + e], gradient = dp[4 * n + 2 * h + e];
                const float kept = DROPOUT ? fmaf(gradient, positive(weight), -d.at[e]) : gradient - d.at[e];
                x[e] = fabsf(weight) * kept;
            }
            ds[n / 2].at[n % 2 * 2 + h] = exists[h] ? pack_bf16(x[0], x[1]) : 0;
        }
    }
}

// Where the roles of a warpgroup of keys are in the ring, and in the steps.
struct Progress {
    unsigned number, step;
};

// All warps of both warpgroups release an entry when they have read it.
__device__ __forceinline__ void release_entry(BackwardShared& shared, unsigned number) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(shared.empty[number % STAGES]);
}
__device__ __forceinline__ unsigned char* wait_entry(BackwardShared& shared, unsigned number) {
    mbarrier_wait(shared.full[number % STAGES], number / STAGES % 2);
    return shared.ring[number % STAGES];
}

// A block of keys of which this warpgroup has none.
__device__ __forceinline__ void pass_block(BackwardShared& shared, Progress& at, unsigned tiles) {
    for (unsigned i = 0; i < 2 + tiles; i++, at.number++) {
        wait_entry(shared, at.number);
        release_entry(shared, at.number);
        if (i < 2) continue;
        mbarrier_wait(shared.ds_empty, at.step++ % 2 ^ 1);
        __syncwarp();  // no lane misses the phase
        if (threadIdx.x % WARP == 0) mbarrier_arrive(shared.ds_full);
    }
}

// Of two queries of a tile for each lane: what their dropout is drawn with.
struct RowKeys {
    unsigned at[2];

    __device__ __forceinline__ void load(const Dropout& dropout, const WorkItem& item, unsigned tile) {
#pragma unroll
        for (int q = 0; q < 2; q++) {
            const unsigned query = tile * TILE + q * WARP + lane_id();
            at[q] = query < item.queries ? dropout.row_keys[item.q_start + query] : 0;
        }
    }
};

// A tile of queries; `prefetch` begins loads for the next one. The products of dk are still running in the end.
template <bool DROPOUT, typename Prefetch>
__device__ __forceinline__ void key_tile(BackwardShared& shared, OwnKeys& own, const Progress& at, bool first,
                                         const bool (&exists)[2], unsigned kept, float scale_log2,
                                         const Prefetch& prefetch) {
    const unsigned stage = at.number % STAGES, group = uniform(threadIdx.x / WARPGROUP);
    const unsigned char *q = shared.ring[stage], *dout = q + TILE_BYTES;
    const unsigned long long q_columns = operand<K_MAJOR>(q), dout_columns = operand<K_MAJOR>(dout);
    const unsigned long long q_rows = operand<MN_MAJOR>(q), dout_rows = operand<MN_MAJOR>(dout);
    float s[TILE / 2], dp[TILE / 2];
    fence_products();
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) wgmma<TILE, K_MAJOR>(s, own.k[k], advance(q_columns, 32 * k), k > 0);
    commit_products();
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) wgmma<TILE, K_MAJOR>(dp, own.v[k], advance(dout_columns, 32 * k), k > 0);
    commit_products();
    wait_products<1>();
    hold(s);

    Fragment p[TILE / 16], ds[TILE / 16];
    weigh<DROPOUT>(p, s, shared.lse_log2[stage], kept, scale_log2);
    fence_products();
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) wgmma<HEAD, MN_MAJOR>(own.dv, p[k], advance(dout_rows, 16 * ROW_BYTES * k));
    commit_products();
    prefetch();
    wait_products<1>();
    hold(dp);
    score_gradients<DROPOUT>(ds, s, dp, shared.delta[stage], exists);

    const int row = static_cast<int>(group) * TILE + warp_id() % WARPS * 16;
    mbarrier_wait(shared.ds_empty, at.step % 2 ^ 1);
    if (first) {
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) store_a(shared.keys, row, k, own.k[k]);
    }
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) store_a(shared.ds, row, k, ds[k]);
    fence_async();
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(shared.ds_full);
    fence_products();
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) wgmma<HEAD, MN_MAJOR>(own.dk, ds[k], advance(q_rows, 16 * ROW_BYTES * k));
    commit_products();
}

// The warpgroup's keys of a block: `keys` of them, from row `first` of the sequence on.
template <bool DROPOUT>
__device__ __forceinline__ void key_block(BackwardShared& shared, Progress& at, const BackwardArgs& args,
                                          const AttentionSizes& s, const Dropout& dropout, unsigned round,
                                          unsigned first, unsigned keys) {
    const WorkItem item = item_of(shared, round);
    const unsigned warp = warp_id() % WARPS, lane = lane_id(), group = threadIdx.x / WARPGROUP;
    const unsigned tiles = (item.queries + TILE - 1) / TILE, block = first / TILE;
    OwnKeys own;
#pragma unroll
    for (int i = 0; i < HEAD / 2; i++) own.dk[i] = own.dv[i] = 0.0f;
    const unsigned key = key_of_row(warp, lane / 4);
    const bool exists[2] = {key < keys, key + 8 < keys};
    if (tiles > 0) {
        const int from = static_cast<int>(group * TILE + key_of_row(warp, lane % 16));
        unsigned char* tile = wait_entry(shared, at.number);
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) own.k[k] = load_matrices(chunk_at(tile, from, 2 * k + lane / 16));
        release_entry(shared, at.number++);
        tile = wait_entry(shared, at.number);
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) own.v[k] = load_matrices(chunk_at(tile, from, 2 * k + lane / 16));
        release_entry(shared, at.number++);
    }
    RowKeys row_keys = {};
    if (DROPOUT) row_keys.load(dropout, item, 0);
    unsigned kept = DROPOUT && tiles > 0 ? kept_bits(dropout, row_keys.at, item.head, block, warp) : 0;
#pragma unroll 1
    for (unsigned tile = 0; tile < tiles; tile++, at.number++, at.step++) {
        wait_entry(shared, at.number);
        key_tile<DROPOUT>(shared, own, at, tile == 0, exists, kept, s.scale * LOG2_E, [&] {
            if (DROPOUT) row_keys.load(dropout, item, tile + 1);
        });
        if (DROPOUT) kept = kept_bits(dropout, row_keys.at, item.head, block, warp);  // beside the products
        pin(kept);
        wait_products<0>();
        hold(own.dv);
        hold(own.dk);
        release_entry(shared, at.number);
    }
    const WorkItem& again = shared.items[round];  // rather than in registers
    const size_t row = static_cast<size_t>(again.k_start + first + key) * s.kv_stride + again.head * HEAD;
    const size_t next = row + static_cast<size_t>(8) * s.kv_stride;
    bf16 *const dk[2] = {args.dk + row, args.dk + next}, *const dv[2] = {args.dv + row, args.dv + next};
    store_rows(dv, exists, own.dv, DROPOUT ? dropout.scale : 1.0f);
    store_rows(dk, exists, own.dk, sum_factor<DROPOUT>(s, dropout));
}

template <bool DROPOUT>
__device__ __forceinline__ void backward_sm90(const BackwardArgs& args, const AttentionSizes& s,
                                              const Dropout& dropout) {
    SHARED_ALIGNED(unsigned char, raw);
    BackwardShared& shared = *reinterpret_cast<BackwardShared*>(raw);
    if (threadIdx.x == 0) {
        for (unsigned i = 0; i < STAGES; i++) {
            mbarrier_init(shared.full[i], 1 + WARPS);  // the bytes of the copies, and lse and D
            mbarrier_init(shared.empty[i], CONSUMERS / WARP);
        }
        mbarrier_init(shared.ds_full, CONSUMERS / WARP);
        mbarrier_init(shared.ds_empty, WARPS);
        publish_mbarriers();
        tma_prefetch(args.q_map);
        tma_prefetch(args.kv_map);
        tma_prefetch(args.dout_map);
    }
    const unsigned count = item_count(s.sequences * s.heads);
    list_items(shared, s, count);
    if (threadIdx.x >= CONSUMERS) {
        give_registers<72>();
        feed_and_sum<DROPOUT>(shared, args, s, dropout, count);
    } else {
        take_registers<216>();
        const unsigned group = uniform(threadIdx.x / WARPGROUP);
        Progress at = {0, 0};
        for (unsigned round = 0; round < count; round++) {
            const WorkItem item = item_of(shared, round);
            for (unsigned first = group * TILE; first - group * TILE < item.keys; first += KEYS) {
                if (first < item.keys)
                    key_block<DROPOUT>(shared, at, args, s, dropout, round, first, item.keys - first);
                else if (item.queries > 0)
                    pass_block(shared, at, (item.queries + TILE - 1) / TILE);
            }
        }
    }
}

}  // namespace attention

// kv_map: keys, and values after them. delta: memory for D [heads, R].
#define ATTENTION_SM90_BACKWARD(name, dropout)                                                                         \
    extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1) attention_sm90_backward##name##_bf16(    \
        bf16* dq, bf16* dk, bf16* dv, float* delta, const bf16* dout, const bf16* out, const float* lse,               \
        AttentionSizes s, Dropout drop, const __grid_constant__ TensorMap q_map,                                       \
        const __grid_constant__ TensorMap kv_map, const __grid_constant__ TensorMap dout_map) {                        \
        const attention::BackwardArgs args = {dq, dk, dv, delta, dout, out, lse, q_map, kv_map, dout_map};             \
        attention::backward_sm90<dropout>(args, s, drop);                                                              \
    }                                                                                                                  \
    EXPORT(attention_sm90_backward##name##_bf16)

ATTENTION_SM90_BACKWARD(, false)
ATTENTION_SM90_BACKWARD(_dropout, true)
