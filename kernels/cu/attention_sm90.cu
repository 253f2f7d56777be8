// Forward attention over packed sequences for sm_90a (TMA, wgmma): bf16, heads of 64 elements.
#include "common/attention_items.cuh"
#include "common/attention_sm90.cuh"

namespace attention {

constexpr int TEAMS = 2, CONSUMERS = TEAMS * WARPGROUP, BLOCK_THREADS = CONSUMERS + WARP;
constexpr int STAGES = 8, Q_STAGES = 2, Q_BYTES = TEAMS * TILE_BYTES;
constexpr int RELEASES = CONSUMERS / WARP;
// A new reference for a row's weights is taken when a score exceeds the old one by this, in powers of two.
constexpr float HEADROOM = 8.0f;

// What the block shares besides its tiles.
struct ForwardShared {
    Ring<STAGES> ring;
    Ring<Q_STAGES> queries;
    Item items[Q_STAGES];
    unsigned row_keys[Q_STAGES][ITEM_ROWS];
    ItemTable table;
};

// How many tiles of 64 keys an item has, and into how many rows of tiles of their own the teams' keys come.
__device__ __forceinline__ unsigned tiles_of(const Item& item) { return (item.keys + TILE - 1) / TILE; }
__device__ __forceinline__ unsigned streams_of(const Item& item, unsigned heads) {
    return item.paired && item.head + 1 < heads ? 2 : 1;
}

// One warp: the block's items one after the other, their queries, and their keys and values in the order of their use.
template <bool DROPOUT>
__device__ __forceinline__ void produce(ForwardShared& shared, unsigned char* q_tiles, unsigned char* tiles, const TensorMap& q_map,
                                        const TensorMap& kv_map, const AttentionSizes& s, const Dropout& dropout) {
    const unsigned lane = threadIdx.x % WARP;
    Items items(shared.table, s);
    unsigned n = 0;  // tiles so far
    for (unsigned i = 0;; i++) {
        const Item item = items.next();
        unsigned row_keys[ITEM_ROWS / WARP];
#pragma unroll
        for (unsigned j = 0; DROPOUT && j < ITEM_ROWS / WARP; j++)
            if (j * WARP + lane < item.rows) row_keys[j] = __ldg(dropout.row_keys + item.row + j * WARP + lane);
        shared.queries.wait_empty(i);
#pragma unroll
        for (unsigned j = 0; DROPOUT && j < ITEM_ROWS / WARP; j++)
            if (j * WARP + lane < item.rows) shared.row_keys[i % Q_STAGES][j * WARP + lane] = row_keys[j];
        if (lane == 0) shared.items[i % Q_STAGES] = item;
        __syncwarp();
        const unsigned streams = streams_of(item, s.heads), loads = item.paired ? streams : TEAMS;
        if (lane == 0) {
            Mbarrier& full = shared.queries.fill(i, item.rows == 0 ? 0 : loads * TILE_BYTES);
            for (unsigned team = 0; item.rows != 0 && team < loads; team++)
                tma_load(q_tiles + i % Q_STAGES * Q_BYTES + team * TILE_BYTES, q_map, item.row + (item.paired ? 0 : team * TILE),
                         (item.head + (item.paired ? team : 0)) * HEAD, full);
        }
        if (item.rows == 0) return;
        const unsigned count = tiles_of(item);
        for (unsigned step = 0; lane == 0 && step < 2 * count; step++) {
            // Keys come one tile ahead of values: k0, k1, v0, k2, v1, ...
            const bool is_key = step == 0 || (step % 2 == 1 && step + 1 < 2 * count);
            const unsigned tile = is_key ? (step + 1) / 2 : step / 2 - (step % 2 == 0);
            for (unsigned stream = 0; stream < streams; stream++, n++)
                tma_load(tiles + n % STAGES * TILE_BYTES, kv_map, item.first_key + tile * TILE,
                         (item.head + stream + (is_key ? 0 : s.heads)) * HEAD, shared.ring.fill(n, TILE_BYTES));
        }
    }
}

// A thread's part of its team's 64 queries: rows 16 * warp + lane / 4 + 8 h are index [h].
struct ForwardRows {
    float scores[TILE / 2];  // of one tile, then their weights
    float out[HEAD / 2];
    Fragment p[TILE / 16];  // the weights as the second product's operand
    Philox kept[2];
    float reference[2];  // the score, unscaled, that weights are relative to
    float shrink[2];     // what a new one does to earlier sums
    float total[2];      // of this thread's keys
};

// Scores of a tile of which `keys` exist become weights. Whether any reference in the warp is a new one.
__device__ __forceinline__ bool weigh(ForwardRows& own, unsigned keys, float scale_log2, float headroom) {
    if (keys < TILE) {
#pragma unroll
        for (int i = 0; i < TILE / 2; i++)
            if (i / 4 * 8 + 2 * (threadIdx.x % 4) + i % 2 >= keys) own.scores[i] = -INFINITY;
    }
    bool renewed = false;
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = own.scores[2 * h];
#pragma unroll
        for (int i = 0; i < TILE / 2; i++)
            if (i % 4 / 2 == h) most = fmaxf(most, own.scores[i]);
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        const bool rises = most > own.reference[h] + headroom;
        const float old = own.reference[h];
        own.reference[h] = rises ? most : old;
        base[h] = own.reference[h] * scale_log2;
        own.shrink[h] = rises ? fast_exp2(old * scale_log2 - base[h]) : 1.0f;
        renewed |= rises;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum[2] = {};
#pragma unroll
        for (int i = 0; i < TILE / 2; i++) {
            if (i % 4 / 2 != h) continue;
            own.scores[i] = fast_exp2(fmaf(own.scores[i], scale_log2, -base[h]));
            sum[i % 2] += own.scores[i];
        }
        own.total[h] = fmaf(own.total[h], own.shrink[h], sum[0] + sum[1]);
    }
    return __any_sync(ALL_LANES, renewed);
}

// Weights rounded into the second product's operand; the sums of the earlier tiles' products, which are complete, follow a new reference.
template <bool DROPOUT>
__device__ __forceinline__ void round_weights(ForwardRows& own, bool renewed, unsigned limit) {
#pragma unroll
    for (int i = 0; i < TILE / 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            unsigned word = pack_bf16(own.scores[4 * i + 2 * h], own.scores[4 * i + 2 * h + 1]);
            if (DROPOUT) {
                const unsigned bytes = own.kept[h].at[i / 2];
                word = multiply_bf16(word, i % 2 == 0 ? kept_factors<0>(bytes, limit) : kept_factors<1>(bytes, limit));
            }
            own.p[i / 2].at[i % 2 * 2 + h] = word;
        }
    if (renewed) {
#pragma unroll
        for (int i = 0; i < HEAD / 2; i++) own.out[i] *= own.shrink[i % 4 / 2];
    }
}

// scores = q k^T
__device__ __forceinline__ void begin_scores(ForwardRows& own, const unsigned char* q, const unsigned char* k) {
    const unsigned long long a = operand<K_MAJOR>(q), b = operand<K_MAJOR>(k);
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) wgmma<TILE, K_MAJOR, K_MAJOR>(own.scores, advance(a, 32 * step), advance(b, 32 * step), step > 0);
    commit_products();
}

// out += p v
__device__ __forceinline__ void begin_out(ForwardRows& own, const unsigned char* v) {
    const unsigned long long b = operand<MN_MAJOR>(v);
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) wgmma<HEAD, MN_MAJOR>(own.out, own.p[step], advance(b, 16 * ROW_BYTES * step));
    commit_products();
}

// Zeros the rows of a tile from `rows` on: they belong to another sequence, or to none.
__device__ __forceinline__ void clear_rows(unsigned char* tile, unsigned rows, unsigned thread, unsigned threads) {
    for (unsigned at = rows * CHUNKS + thread; at < TILE * CHUNKS; at += threads) store<4>(reinterpret_cast<unsigned*>(tile + 16 * at), Vec<unsigned, 4>{});
    fence_async();
}

// Outputs and log-sum-exps of the team's queries, as far as they are below `rows`, over the team's tile of queries.
__device__ __forceinline__ void finish(ForwardRows& own, bf16* out, size_t stride, float* lse, unsigned char* q_tile, int rows, float scale,
                                       float dropout_scale) {
    const int first = threadIdx.x % WARPGROUP / WARP * 16, at = first + lane_id() / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = own.total[h];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        if (lane_id() % 4 == 0 && at + 8 * h < rows) lse[at + 8 * h] = fmaf(own.reference[h], scale, logf(total));
        const float factor = dropout_scale / total;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            *reinterpret_cast<unsigned*>(chunk_at(q_tile, at + 8 * h, i) + lane_id() % 4 * 4) =
                pack_bf16(own.out[4 * i + 2 * h] * factor, own.out[4 * i + 2 * h + 1] * factor);
    }
    __syncwarp();
    store_tile<16>(out, stride, q_tile, first, rows);
    fence_async();
}

// A team: the block's items as far as they are its own.
template <bool DROPOUT>
__device__ __forceinline__ void consume(ForwardShared& shared, unsigned char* q_tiles, unsigned char* tiles, bf16* out, float* lse,
                                        const AttentionSizes& s, const Dropout& dropout) {
    const unsigned team = uniform(threadIdx.x / WARPGROUP), lane = threadIdx.x % WARP;
    const float scale_log2 = s.scale * LOG2_E, headroom = HEADROOM / scale_log2;
    const unsigned limit = kept_limit(dropout.threshold), hidden = s.heads * HEAD;
    unsigned first = 0;  // number of the item's first tile
    for (unsigned i = 0;; i++) {
        shared.queries.wait_full(i);
        const Item item = shared.items[i % Q_STAGES];
        const unsigned rows = uniform(item.rows), keys = uniform(item.keys), paired = uniform(item.paired), head = uniform(item.head) + paired * team;
        if (rows == 0) return;
        const unsigned count = (keys + TILE - 1) / TILE, streams = paired && uniform(item.head) + 1 < s.heads ? 2 : 1;
        const unsigned row = paired ? 0 : team * TILE;  // first of the team's queries
        if (count > 0 && head < s.heads) {
            unsigned char* q_tile = q_tiles + i % Q_STAGES * Q_BYTES + team * TILE_BYTES;
            const unsigned releases = paired ? 2 : 1, mine = first + (streams == 2 ? team : 0);
            const auto number = [&](unsigned step) { return mine + step * streams; };
            const auto tile_at = [&](unsigned step) { return tiles + Ring<STAGES>::place(number(step)) * TILE_BYTES; };
            // All warps of both teams release a tile; where it is one team's, two lanes of each warp do.
            const auto release = [&](unsigned step) {
                if (lane < releases) shared.ring.release(number(step));
            };
            ForwardRows own;
            unsigned row_key[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (DROPOUT) row_key[h] = shared.row_keys[i % Q_STAGES][row + threadIdx.x % WARPGROUP / WARP * 16 + 8 * h + lane / 4];
                own.reference[h] = -INFINITY, own.total[h] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < HEAD / 2; j++) own.out[j] = 0.0f;
            const auto draw = [&](unsigned tile) {
#pragma unroll
                for (int h = 0; DROPOUT && h < 2; h++) own.kept[h] = attention_draw(dropout, row_key[h], head, tile, lane % 4);
            };
            shared.ring.wait_full(number(0));
            fence_products();
            begin_scores(own, q_tile, tile_at(0));
            draw(0);
            wait_products<0>();
            hold(own.scores);
            release(0);
            bool renewed = weigh(own, keys, scale_log2, headroom);
            for (unsigned tile = 0; tile + 1 < count; tile++) {
                wait_products<0>();
                hold(own.out);
                if (tile > 0) release(2 * tile);
                round_weights<DROPOUT>(own, renewed, limit);
                shared.ring.wait_full(number(2 * tile + 1));
                fence_products();
                begin_scores(own, q_tile, tile_at(2 * tile + 1));
                shared.ring.wait_full(number(2 * tile + 2));
                begin_out(own, tile_at(2 * tile + 2));
                draw(tile + 1);
                wait_products<1>();
                hold(own.scores);
                release(2 * tile + 1);
                renewed = weigh(own, keys - (tile + 1) * TILE, scale_log2, headroom);
            }
            wait_products<0>();
            hold(own.out);
            if (count > 1) release(2 * count - 2);
            round_weights<DROPOUT>(own, renewed, limit);
            shared.ring.wait_full(number(2 * count - 1));
            if (keys % TILE != 0) {
                const unsigned threads = paired ? WARPGROUP : CONSUMERS;
                clear_rows(tile_at(2 * count - 1), keys % TILE, threadIdx.x % threads, threads);
                sync_named(paired ? 1 + team : 3, threads);
            }
            fence_products();
            begin_out(own, tile_at(2 * count - 1));
            wait_products<0>();
            hold(own.out);
            release(2 * count - 1);
            const unsigned query = item.row + row;
            finish(own, out + static_cast<size_t>(query) * hidden + head * HEAD, hidden, lse + static_cast<size_t>(head) * s.queries + query,
                   q_tile, static_cast<int>(rows - row), s.scale, DROPOUT ? dropout.scale / KEPT_FACTOR : 1.0f);
        }
        __syncwarp();
        if (lane == 0) shared.queries.release(i);
        first += 2 * count * streams;
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void forward_sm90(bf16* out, float* lse, const TensorMap& q_map, const TensorMap& kv_map, const AttentionSizes& s,
                                        const Dropout& dropout) {
    SHARED_ALIGNED(unsigned char, tiles);
    SHARED(ForwardShared, shared, [1]);
    unsigned char* ring_tiles = tiles + Q_STAGES * Q_BYTES;
    if (threadIdx.x == 0) {
        shared[0].ring.init(RELEASES);
        shared[0].queries.init(RELEASES);
        publish_mbarriers();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS)
        produce<DROPOUT>(shared[0], tiles, ring_tiles, q_map, kv_map, s, dropout);
    else
        consume<DROPOUT>(shared[0], tiles, ring_tiles, out, lse, s, dropout);
}

}  // namespace attention

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 2)
    attention_sm90_forward_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
                                AttentionSizes s, Dropout dropout) {
    attention::forward_sm90<false>(out, lse, q_map, kv_map, s, dropout);
}
EXPORT(attention_sm90_forward_bf16)

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 2)
    attention_sm90_forward_dropout_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
                                        AttentionSizes s, Dropout dropout) {
    attention::forward_sm90<true>(out, lse, q_map, kv_map, s, dropout);
}
EXPORT(attention_sm90_forward_dropout_bf16)
