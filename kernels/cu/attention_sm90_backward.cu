// Backward attention over packed sequences for sm_90a in one pass (TMA, wgmma): bf16, heads of 64 elements, up to 512 keys.
//
// The math, the layouts and what is saved are those of attention_sm80_backward.cu:
//   p = exp(s - lse), dv = (p m)^T dout, ds = p (m dout v^T - D), dq = ds k / 8, dk = ds^T q / 8.
//
// A block works on one head of one sequence at a time, on all of it, so that each sum has one owner and one order, without atomics.
// Blocks of 128 keys are the outer loop, tiles of 64 queries the inner one. Two warpgroups have 64 keys each, as rows of transposed
// products: k q^T and v dout^T with k and v in registers; p and ds, rounded, are as they lie the operands of the products with
// dout and q, whose sums dv and dk stay in registers. ds also goes to shared memory, as a tile [keys, queries], for the third
// warpgroup: it multiplies it with k into dq, which is kept in shared memory over the blocks of keys, in f32, each thread
// reading and writing places of its own. It also feeds a ring of four stages of 16 KiB: k, v, then (q, dout) of each tile, with
// lse and D, which it makes of dout and out at the first block of keys.
//
// Rows of keys are in an order in which a warp's 16 are those of one call of Philox (key_of_row), so that dropout passes from lane to
// lane in one word. The order holds for ds and for the copy of k that dq is made with, too.
//
// Reckoning for 128 keys and 64 queries (5.2 MFLOP). Tensor cores: 1,280 cycles. Shared memory at 128 bytes a cycle: operands
// 512 (k and v in registers) + 256 (dq, both operands), ds 128, sums of dq 256, copies 128, together 1,280. Exponentials: 512. 
// Issue of 8 warps in 4 schedulers: see the counts in attention/sm90_backward.rs.
// Shared memory: ring 64 KiB, dq 128, ds 16, k 16, the rest 3 of 227.
//
// Relied on: a sequence has at most 512 keys and at most 512 queries, and one with queries has keys. Rows of a tile past the end of
// a sequence are the neighbours', finite, and take part with weights of 0: what is not finite spreads to a neighbour.
#include "common/attention_sm90_backward.cuh"

namespace attention {

constexpr unsigned KEYS = 128, STAGES = 4, STAGE_BYTES = 2 * TILE_BYTES, LONGEST = 512, TILES = LONGEST / TILE;
constexpr unsigned CONSUMERS = 2 * WARPGROUP, BLOCK_THREADS = CONSUMERS + WARPGROUP;
// Items that a block has at most; the host starts blocks enough.
constexpr unsigned ITEMS = 32;

// A head of a sequence.
struct WorkItem {
    unsigned q_start, queries, k_start, keys, head;
};

struct BackwardShared {
    alignas(1024) unsigned char ring[STAGES][STAGE_BYTES];
    float dq[TILES][8][WARPGROUP][4];
    unsigned char ds[KEYS * ROW_BYTES], keys[KEYS * ROW_BYTES];  // rows in the order of accumulators
    float lse_log2[STAGES][TILE], delta[STAGES][TILE];           // delta: D, or as of sum_factor
    WorkItem items[ITEMS];
    Mbarrier full[STAGES], empty[STAGES], ds_full, ds_empty;
};
static_assert(sizeof(BackwardShared) <= 227 * 1024, "shared memory of a block");

// What a call gets; see the kernels below.
struct BackwardArgs {
    bf16 *dq, *dk, *dv;
    float* delta;
    const bf16 *dout, *out;
    const float* lse;
    const TensorMap &q_map, &kv_map, &dout_map;
};

// How many items this block has. Sorted, items go to blocks from the first to the last, then from the last to the first, and so on.
__device__ __forceinline__ unsigned item_count(unsigned items) {
    const unsigned rounds = items / gridDim.x, place = rounds % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    return rounds + (place < items % gridDim.x);
}
__device__ __forceinline__ unsigned item_place(unsigned round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

// The block's items, of the sequences with most work first. All threads call it.
__device__ __forceinline__ void list_items(BackwardShared& shared, const AttentionSizes& s, unsigned count) {
    unsigned char* costs = reinterpret_cast<unsigned char*>(shared.dq);
    const unsigned sequences = s.sequences, padded = (sequences + 15) / 16 * 16;
#pragma unroll 1
    for (unsigned b = threadIdx.x; b < padded; b += BLOCK_THREADS) {
        unsigned cost = 0;
        if (b < sequences) cost = (s.cu_k[b + 1] - s.cu_k[b] + TILE - 1) / TILE * (1 + (s.cu_q[b + 1] - s.cu_q[b] + TILE - 1) / TILE);
        costs[b] = static_cast<unsigned char>(cost);
    }
    __syncthreads();
#pragma unroll 1
    for (unsigned b = threadIdx.x; b < sequences; b += BLOCK_THREADS) {
        const unsigned own = costs[b];
        unsigned rank = 0;
#pragma unroll 1
        for (unsigned at = 0; at < padded; at += 16) {
            const Vec<unsigned, 4> words = load<4>(reinterpret_cast<unsigned*>(costs + at));
#pragma unroll
            for (unsigned i = 0; i < 16; i++) {
                const unsigned cost = words.at[i / 4] >> (i % 4 * 8) & 0xffu;
                rank += cost + (at + i < b) > own;
            }
        }
#pragma unroll 1
        for (unsigned round = 0; round < count; round++) {
            const unsigned place = item_place(round);
            if (place / s.heads != rank) continue;
            shared.items[round] = {s.cu_q[b], s.cu_q[b + 1] - s.cu_q[b], s.cu_k[b], s.cu_k[b + 1] - s.cu_k[b], place % s.heads};
        }
    }
    __syncthreads();
}

// An item as all lanes know it.
__device__ __forceinline__ WorkItem item_of(const BackwardShared& shared, unsigned round) {
    const WorkItem item = shared.items[round];
    return {uniform(item.q_start), uniform(item.queries), uniform(item.k_start), uniform(item.keys), uniform(item.head)};
}

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
    for (int i = 0; i < 4; i++) sum = fmaf(low_bf16(x.at[i]), low_bf16(y.at[i]), fmaf(high_bf16(x.at[i]), high_bf16(y.at[i]), sum));
    return sum;
}

// With dropout, ds is made twice as large and without dropout's scale: 2 p (m dp - D / scale), where dp is that of the scores. So is D.
template <bool DROPOUT>
__device__ __forceinline__ float sum_factor(const AttentionSizes& s, const Dropout& dropout) {
    return DROPOUT ? s.scale * dropout.scale * 0.5f : s.scale;
}

// What two threads for each query of a tile load to make its lse, the even one, and D, the odd one: at the first block of keys both
// load half a row of dout and of out.
struct StatLoads {
    Vec<unsigned, 4> dout[4], out[4];
    float saved;
    size_t at;
    bool inside;
};

__device__ __forceinline__ StatLoads load_stat(const BackwardArgs& args, const WorkItem& item, const AttentionSizes& s, unsigned tile, bool first) {
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
        const unsigned *dout = reinterpret_cast<const unsigned*>(args.dout + from), *out = reinterpret_cast<const unsigned*>(args.out + from);
#pragma unroll
        for (int i = 0; i < 4; i++) loads.dout[i] = load<4>(dout + 4 * i), loads.out[i] = load<4>(out + 4 * i);
    }
    return loads;
}

// The even thread's lse or the odd one's D, which is kept for the other blocks of keys.
template <bool DROPOUT>
__device__ __forceinline__ float make_stat(const BackwardArgs& args, const StatLoads& loads, const Dropout& dropout, bool first) {
    const unsigned half = threadIdx.x % 2;
    float delta = loads.saved;
    if (first) {
        delta = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) delta += product_of_eight(loads.dout[i], loads.out[i]);
        delta += __shfl_xor_sync(ALL_LANES, delta, 1);
        if (DROPOUT) delta *= static_cast<float>(256 - dropout.threshold) / 128;  // see sum_factor
        if (loads.inside && half == 1) args.delta[loads.at] = delta;
    }
    if (half == 1) return delta;
    // Past the end a weight is exp2(-infinity).
    return loads.inside ? loads.saved * LOG2_E : INFINITY;
}

// The third warpgroup: one entry of the ring.
template <bool DROPOUT>
__device__ __forceinline__ void feed_entry(BackwardShared& shared, Feed& feed, const BackwardArgs& args, const AttentionSizes& s,
                                           const Dropout& dropout) {
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
        for (int i = 0; i < tiles; i++) tma_load(to + i * TILE_BYTES, args.kv_map, row + i * TILE, from, shared.full[stage]);
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
__device__ __forceinline__ void query_gradients(BackwardShared& shared, unsigned tile, unsigned step, unsigned keys, bool first, bool last,
                                                bf16* dq, unsigned stride, int queries, float factor) {
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
    for (unsigned k = 0; k < TILE / 16; k++) wgmma<HEAD, MN_MAJOR, MN_MAJOR>(acc, advance(a, 16 * ROW_BYTES * k), advance(b, 16 * ROW_BYTES * k));
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
        for (int i = 0; i < 8; i++) store<4>(shared.dq[tile][i][t], Vec<float, 4>{{acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]}});
        return;
    }
    const int row = static_cast<int>(t / WARP) * 16 + lane_id() / 4;
    bf16* const rows[2] = {dq + static_cast<size_t>(row) * stride, dq + static_cast<size_t>(row + 8) * stride};
    const bool inside[2] = {row < queries, row + 8 < queries};
    store_rows(rows, inside, acc, factor);
}

template <bool DROPOUT>
__device__ __forceinline__ void feed_and_sum(BackwardShared& shared, const BackwardArgs& args, const AttentionSizes& s, const Dropout& dropout,
                                             unsigned count) {
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
                                    dq + static_cast<size_t>(tile) * TILE * s.q_stride, s.q_stride, static_cast<int>(item.queries - tile * TILE), factor);
                feed_entry<DROPOUT>(shared, feed, args, s, dropout);
            }
        }
    }
}

// A warpgroup's 64 keys.
struct OwnKeys {
    Fragment k[HEAD / 16], v[HEAD / 16];
    float dk[HEAD / 2], dv[HEAD / 2];
};

// Transposed scores become weights: p, rounded and masked, is the operand of the product with dout. s keeps them unmasked, those
// that are dropped with their signs set.
template <bool DROPOUT>
__device__ __forceinline__ void weigh(Fragment (&p)[TILE / 16], float (&s)[TILE / 2], const float* lse_log2, unsigned kept, float scale_log2) {
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
__device__ __forceinline__ void score_gradients(Fragment (&ds)[TILE / 16], const float (&p)[TILE / 2], const float (&dp)[TILE / 2], const float* delta,
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
                // A dropped weight and its absolute value are 0 together, a kept one's are twice the weight.
                x[e] = DROPOUT ? fmaf(weight + fabsf(weight), gradient, -fabsf(weight) * d.at[e]) : weight * (gradient - d.at[e]);
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
__device__ __forceinline__ void key_tile(BackwardShared& shared, OwnKeys& own, const Progress& at, bool first, const bool (&exists)[2], unsigned kept,
                                         float scale_log2, const Prefetch& prefetch) {
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
__device__ __forceinline__ void key_block(BackwardShared& shared, Progress& at, const BackwardArgs& args, const AttentionSizes& s, const Dropout& dropout,
                                          unsigned round, unsigned first, unsigned keys) {
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
    const size_t row = static_cast<size_t>(again.k_start + first + key) * s.kv_stride + again.head * HEAD, further = static_cast<size_t>(8) * s.kv_stride;
    bf16 *const dk[2] = {args.dk + row, args.dk + row + further}, *const dv[2] = {args.dv + row, args.dv + row + further};
    store_rows(dv, exists, own.dv, DROPOUT ? dropout.scale : 1.0f);
    store_rows(dk, exists, own.dk, sum_factor<DROPOUT>(s, dropout));
}

template <bool DROPOUT>
__device__ __forceinline__ void backward_sm90(const BackwardArgs& args, const AttentionSizes& s, const Dropout& dropout) {
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
#define ATTENTION_SM90_BACKWARD(name, dropout)                                                                                             \
    extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1) attention_sm90_backward##name##_bf16(                        \
        bf16* dq, bf16* dk, bf16* dv, float* delta, const bf16* dout, const bf16* out, const float* lse, AttentionSizes s, Dropout drop,   \
        const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map, const __grid_constant__ TensorMap dout_map) {   \
        attention::backward_sm90<dropout>({dq, dk, dv, delta, dout, out, lse, q_map, kv_map, dout_map}, s, drop);                          \
    }                                                                                                                                      \
    EXPORT(attention_sm90_backward##name##_bf16)

ATTENTION_SM90_BACKWARD(, false)
ATTENTION_SM90_BACKWARD(_dropout, true)
