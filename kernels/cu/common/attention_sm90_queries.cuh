// The third warpgroup of the one-pass attention backward: feeds the ring that the keys' warpgroups read, and sums dq.
#pragma once
#include "common/attention_sm90_backward.cuh"

namespace attention {

// What the ring gets next: entry `next` of a block of keys is k, v, or a tile of queries.
struct Feed {
    unsigned number, round, count, first, next;
    WorkItem item;

    __device__ __forceinline__ void begin(const BackwardShared& shared, unsigned items) {
        number = 0, count = items, round = 0, first = 0, next = 0;
        skip(shared);
    }
    // Items without products are not fed.
    __device__ __forceinline__ void skip(const BackwardShared& shared) {
        for (; round < count; round++) {
            item = item_of(shared, round);
            if (item.keys != 0 && item.queries != 0) return;
        }
    }
    __device__ __forceinline__ void advance(const BackwardShared& shared) {
        number++;
        if (++next < 2 + (item.queries + TILE - 1) / TILE) return;
        next = 0, first += KEYS;
        if (first < item.keys) return;
        first = 0, round++;
        skip(shared);
    }
};

__device__ __forceinline__ float product_of_eight(const Vec<unsigned, 4>& x, const Vec<unsigned, 4>& y) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned a = x.at[i], b = y.at[i];
        sum = fmaf(low_bf16(a), low_bf16(b), fmaf(high_bf16(a), high_bf16(b), sum));
    }
    return sum;
}

// What two threads for each query of a tile load to make its lse, the even one, and D, the odd one: at the first block
// of keys both load half a row of dout and of out.
struct StatLoads {
    Vec<unsigned, 4> dout[4], out[4];
    float saved;
    size_t at;
    bool inside;
};

__device__ __forceinline__ StatLoads load_stat(const BackwardArgs& args, const WorkItem& item, const AttentionSizes& s,
                                               unsigned tile, bool first) {
    const unsigned t = threadIdx.x % WARPGROUP, query = tile * TILE + t / 2, row = item.q_start + query, half = t % 2;
    StatLoads loads = {};
    loads.inside = query < item.queries;
    loads.at = static_cast<size_t>(item.head) * s.queries + row;
    if (!loads.inside) return loads;
    if (half == 0)
        loads.saved = args.lse[loads.at];
    else if (!first)
        loads.saved = args.delta[loads.at];
    if (first) {
        const size_t from = static_cast<size_t>(row) * s.heads * HEAD + item.head * HEAD + half * (HEAD / 2);
        const unsigned* dout = reinterpret_cast<const unsigned*>(args.dout + from);
        const unsigned* out = reinterpret_cast<const unsigned*>(args.out + from);
#pragma unroll
        for (int i = 0; i < 4; i++) loads.dout[i] = load<4>(dout + 4 * i), loads.out[i] = load<4>(out + 4 * i);
    }
    return loads;
}

// The even thread's lse or the odd one's D, which is kept for the other blocks of keys.
template <bool DROPOUT>
__device__ __forceinline__ float make_stat(const BackwardArgs& args, const StatLoads& loads, const Dropout& dropout,
                                           bool first) {
    const unsigned half = threadIdx.x % 2;
    float delta = loads.saved;
    if (first) {
        delta = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) delta += product_of_eight(loads.dout[i], loads.out[i]);
        delta += __shfl_xor_sync(ALL_LANES, delta, 1);
        if (DROPOUT) delta *= static_cast<float>(256 - dropout.threshold) / 256;  // see sum_factor
        if (loads.inside && half == 1) args.delta[loads.at] = delta;
    }
    if (half == 1) return delta;
    // Past the end a weight is exp2(-infinity).
    return loads.inside ? loads.saved * LOG2_E : INFINITY;
}

// The third warpgroup: one entry of the ring.
template <bool DROPOUT>
__device__ __forceinline__ void feed_entry(BackwardShared& shared, Feed& feed, const BackwardArgs& args,
                                           const AttentionSizes& s, const Dropout& dropout) {
    if (feed.round == feed.count) return;
    const unsigned stage = feed.number % STAGES, parity = feed.number / STAGES % 2;
    const WorkItem& item = feed.item;
    unsigned char* const to = shared.ring[stage];
    const int column = static_cast<int>(item.head * HEAD);
    const bool leader = threadIdx.x == CONSUMERS, is_tile = feed.next >= 2;
    const unsigned tile = feed.next - 2;
    StatLoads loads = {};
    if (is_tile) loads = load_stat(args, item, s, tile, feed.first == 0);
    mbarrier_wait(shared.empty[stage], parity ^ 1);
    if (leader && is_tile) {
        const int row = static_cast<int>(item.q_start + tile * TILE);
        mbarrier_arrive_expect(shared.full[stage], 2 * TILE_BYTES);
        tma_load(to, args.q_map, row, column, shared.full[stage]);
        tma_load(to + TILE_BYTES, args.dout_map, row, column, shared.full[stage]);
    } else if (leader) {
        const int row = static_cast<int>(item.k_start + feed.first), tiles = item.keys - feed.first > TILE ? 2 : 1;
        const int from = column + static_cast<int>(feed.next * s.heads * HEAD);  // values follow keys
        mbarrier_arrive_expect(shared.full[stage], tiles * TILE_BYTES);
        for (int i = 0; i < tiles; i++)
            tma_load(to + i * TILE_BYTES, args.kv_map, row + i * TILE, from, shared.full[stage]);
    }
    if (is_tile) {
        const float stat = make_stat<DROPOUT>(args, loads, dropout, feed.first == 0);
        const unsigned t = threadIdx.x % WARPGROUP;
        (t % 2 == 0 ? shared.lse_log2[stage] : shared.delta[stage])[t / 2] = stat;
    }
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(shared.full[stage]);
    feed.advance(shared);
}

// dq of a tile of queries: the sum over the blocks of keys before, which is in shared memory, and over this one.
__device__ __forceinline__ void query_gradients(BackwardShared& shared, unsigned tile, unsigned step, unsigned keys,
                                                bool first, bool last, bf16* dq, unsigned stride, int queries,
                                                float factor) {
    const unsigned t = threadIdx.x % WARPGROUP;
    float acc[HEAD / 2];
    if (!first) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const Vec<float, 4> part = load<4>(shared.dq[tile][i][t]);
#pragma unroll
            for (int j = 0; j < 4; j++) acc[4 * i + j] = part.at[j];
        }
    } else {
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++) acc[i] = 0.0f;
    }
    mbarrier_wait(shared.ds_full, step % 2);
    const unsigned long long a = operand<MN_MAJOR>(shared.ds), b = operand<MN_MAJOR>(shared.keys);
    fence_products();
#pragma unroll
    for (unsigned k = 0; k < TILE / 16; k++)
        wgmma<HEAD, MN_MAJOR, MN_MAJOR>(acc, advance(a, 16 * ROW_BYTES * k), advance(b, 16 * ROW_BYTES * k));
    commit_products();
    if (keys > TILE) {
#pragma unroll
        for (unsigned k = TILE / 16; k < KEYS / 16; k++)
            wgmma<HEAD, MN_MAJOR, MN_MAJOR>(acc, advance(a, 16 * ROW_BYTES * k), advance(b, 16 * ROW_BYTES * k));
        commit_products();
    }
    wait_products<0>();
    hold(acc);
    if (t % WARP == 0) mbarrier_arrive(shared.ds_empty);
    if (!last) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const Vec<float, 4> part = {{acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]}};
            store<4>(shared.dq[tile][i][t], part);
        }
        return;
    }
    const int row = static_cast<int>(t / WARP) * 16 + lane_id() / 4;
    bf16* const rows[2] = {dq + static_cast<size_t>(row) * stride, dq + static_cast<size_t>(row + 8) * stride};
    const bool inside[2] = {row < queries, row + 8 < queries};
    store_rows(rows, inside, acc, factor);
}

template <bool DROPOUT>
__device__ __forceinline__ void feed_and_sum(BackwardShared& shared, const BackwardArgs& args, const AttentionSizes& s,
                                             const Dropout& dropout, unsigned count) {
    Feed feed;
    feed.begin(shared, count);
#pragma unroll 1
    for (unsigned i = 0; i < STAGES; i++) feed_entry<DROPOUT>(shared, feed, args, s, dropout);
    const float factor = sum_factor<DROPOUT>(s, dropout);
    unsigned step = 0;
    for (unsigned round = 0; round < count; round++) {
        const WorkItem item = item_of(shared, round);
        if (item.queries == 0) continue;
        const unsigned tiles = (item.queries + TILE - 1) / TILE;
        bf16* const dq = args.dq + static_cast<size_t>(item.q_start) * s.q_stride + item.head * HEAD;
        for (unsigned first = 0; first < item.keys; first += KEYS) {
#pragma unroll 1
            for (unsigned i = 0; i < 2 + tiles; i++) {
                const unsigned tile = i - 2;
                if (i >= 2)
                    query_gradients(shared, tile, step++, item.keys - first, first == 0, first + KEYS >= item.keys,
                                    dq + static_cast<size_t>(tile) * TILE * s.q_stride, s.q_stride,
                                    static_cast<int>(item.queries - tile * TILE), factor);
                feed_entry<DROPOUT>(shared, feed, args, s, dropout);
            }
        }
    }
}

}  // namespace attention
