// Forward attention over packed sequences for sm_90a (TMA, wgmma): bf16, heads of 64 elements.
#include "common/attention_items.cuh"
#include "common/attention_sm90.cuh"

namespace attention {

constexpr int TEAMS = 2, BLOCK_THREADS = (TEAMS + 1) * WARPGROUP;
constexpr int STAGES = 8, Q_STAGES = 2, Q_BYTES = 2 * TILE_BYTES;
constexpr int TEAM_BYTES = Q_STAGES * Q_BYTES + STAGES * TILE_BYTES;
// A new reference for a row's weights is taken when a score exceeds the old one by this, in powers of two.
constexpr float HEADROOM = 8.0f;

// What a team and its producer share besides tiles.
struct ForwardTeam {
    Ring<STAGES> ring;
    Ring<Q_STAGES> queries;
    Item items[Q_STAGES];
    unsigned row_keys[Q_STAGES][ITEM_ROWS];
    ItemTable table;
};

// One warp: the team's items one after the other, their queries, and their keys and values in the order of their use.
template <bool DROPOUT>
__device__ __forceinline__ void produce(ForwardTeam& team, unsigned worker, unsigned char* q_tiles, unsigned char* tiles, const TensorMap& q_map,
                                        const TensorMap& kv_map, const AttentionSizes& s, const Dropout& dropout) {
    const unsigned lane = threadIdx.x % WARP;
    Items items(team.table, s, worker, TEAMS * gridDim.x);
    unsigned n = 0;  // tiles so far
    for (unsigned i = 0;; i++) {
        const Item item = items.next();
        const unsigned place = i % Q_STAGES;
        unsigned row_keys[ITEM_ROWS / WARP] = {};
#pragma unroll
        for (unsigned j = 0; DROPOUT && j < ITEM_ROWS / WARP; j++)
            if (j * WARP + lane < item.rows) row_keys[j] = __ldg(dropout.row_keys + item.row + j * WARP + lane);
        team.queries.wait_empty(i);
#pragma unroll
        for (unsigned j = 0; DROPOUT && j < ITEM_ROWS / WARP; j++) team.row_keys[place][j * WARP + lane] = row_keys[j];
        if (lane == 0) team.items[place] = item;
        __syncwarp();
        if (lane == 0) {
            Mbarrier& full = team.queries.fill(i, item.rows == 0 ? 0 : Q_BYTES);
            for (unsigned half = 0; item.rows != 0 && half < 2; half++)
                tma_load(q_tiles + place * Q_BYTES + half * TILE_BYTES, q_map, item.row + (item.paired ? 0 : half * TILE),
                         (item.head + (item.paired ? half : 0)) * HEAD, full);
        }
        if (item.rows == 0) return;
        const unsigned steps = 2 * ((item.keys + TILE - 1) / TILE);
        for (unsigned step = 0; lane == 0 && step < steps; step++) {
            // Keys come one tile ahead of values: k0, k1, v0, k2, v1, ...
            const bool is_key = step == 0 || (step % 2 == 1 && step + 1 < steps);
            const unsigned tile = is_key ? (step + 1) / 2 : (step - 1) / 2;
            for (unsigned half = 0; half <= item.paired; half++, n++)
                tma_load(tiles + Ring<STAGES>::place(n) * TILE_BYTES, kv_map, item.first_key + tile * TILE,
                         (item.head + half + (is_key ? 0 : s.heads)) * HEAD, team.ring.fill(n, TILE_BYTES));
        }
    }
}

// A thread's part of half an item, 64 queries: rows 16 * warp + lane / 4 + 8 h are index [h].
struct Half {
    float scores[TILE / 2];  // of one tile, then their weights
    float out[HEAD / 2];
    Fragment p[TILE / 16];  // the weights as the second product's operand
    float reference[2];     // the score, unscaled, that weights are relative to
    float total[2];         // of this thread's keys
    unsigned row_key[2];
};

// A tile's scores, of which `keys` exist, become weights relative to a reference that is not far below the largest score so far; dropped ones are 0
// in the second product's operand. Where a reference rises, `out` and `total` follow; `out` is complete.
template <bool DROPOUT>
__device__ __forceinline__ void weigh(Half& own, unsigned keys, float scale_log2, const Dropout& dropout, const RoundKeys& round_keys,
                                      const KeptBounds& bounds, unsigned head, unsigned tile) {
    if (keys < TILE) {
#pragma unroll
        for (int i = 0; i < TILE / 2; i++)
            if (i / 4 * 8 + 2 * (threadIdx.x % 4) + i % 2 >= keys) own.scores[i] = -INFINITY;
    }
    float most[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        most[h] = own.scores[2 * h];
#pragma unroll
        for (int i = 0; i < TILE / 2; i++)
            if (i % 4 / 2 == h) most[h] = fmaxf(most[h], own.scores[i]);
        most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 2));
        most[h] *= scale_log2;
    }
    const bool rises[2] = {most[0] > own.reference[0] + HEADROOM, most[1] > own.reference[1] + HEADROOM};
    if (__any_sync(ALL_LANES, rises[0] || rises[1])) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float now = rises[h] ? most[h] : own.reference[h], shrink = fast_exp2(own.reference[h] - now);
            own.reference[h] = now;
            own.total[h] *= shrink;
#pragma unroll
            for (int i = 0; i < HEAD / 2; i++)
                if (i % 4 / 2 == h) own.out[i] *= shrink;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum[2];
        Philox kept = {};
        if (DROPOUT) kept = attention_draw(dropout, round_keys, own.row_key[h], head, tile, threadIdx.x % 4);
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
            const float low = fast_exp2(fmaf(own.scores[4 * i + 2 * h], scale_log2, -own.reference[h]));
            const float high = fast_exp2(fmaf(own.scores[4 * i + 2 * h + 1], scale_log2, -own.reference[h]));
            sum[0] = i == 0 ? low : sum[0] + low, sum[1] = i == 0 ? high : sum[1] + high;
            unsigned word = pack_bf16(low, high);
            if (DROPOUT) {
                const unsigned bytes = kept.at[i / 2];
                word = multiply_bf16(word, i % 2 == 0 ? kept_factors<0>(bytes, bounds) : kept_factors<1>(bytes, bounds));
            }
            own.p[i / 2].at[i % 2 * 2 + h] = word;
        }
        own.total[h] += sum[0] + sum[1];
    }
}

// scores = q k^T
__device__ __forceinline__ void begin_scores(Half& own, unsigned long long q, unsigned long long k) {
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++) wgmma<TILE, K_MAJOR, K_MAJOR>(own.scores, advance(q, 32 * step), advance(k, 32 * step), step > 0);
}

// out += p v
__device__ __forceinline__ void begin_out(Half& own, unsigned long long v) {
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) wgmma<HEAD, MN_MAJOR>(own.out, own.p[step], advance(v, 16 * ROW_BYTES * step));
}

// Zeros the rows of a tile from `rows` on: they belong to another sequence, or to none.
__device__ __forceinline__ void clear_rows(unsigned char* tile, unsigned rows) {
    for (unsigned at = rows * CHUNKS + threadIdx.x % WARPGROUP; at < TILE * CHUNKS; at += WARPGROUP)
        store<4>(reinterpret_cast<unsigned*>(tile + 16 * at), Vec<unsigned, 4>{});
    fence_async();
    sync_named(1 + threadIdx.x / WARPGROUP, WARPGROUP);
}

// Outputs and log-sum-exps of 64 queries, as far as they are below `rows`, over their tile.
__device__ __forceinline__ void finish(Half& own, bf16* out, size_t stride, float* lse, unsigned char* q_tile, int rows, float dropout_scale) {
    const int first = threadIdx.x % WARPGROUP / WARP * 16, at = first + lane_id() / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float total = own.total[h];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        if (lane_id() % 4 == 0 && at + 8 * h < rows) lse[at + 8 * h] = (own.reference[h] + log2f(total)) * (1.0f / LOG2_E);
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

__device__ __forceinline__ void touch(Half& own) { hold(own.scores), hold(own.out); }

// A team: its items. The halves take turns: while the products of one run, the other's scores become weights.
template <bool DROPOUT>
__device__ __forceinline__ void consume(ForwardTeam& team, unsigned char* q_tiles, unsigned char* tiles, bf16* out, float* lse,
                                        const AttentionSizes& s, const Dropout& dropout, const RoundKeys& round_keys) {
    const unsigned lane = threadIdx.x % WARP, thread_row = threadIdx.x % WARPGROUP / WARP * 16 + lane / 4;
    const float scale_log2 = s.scale * LOG2_E;
    const KeptBounds bounds(dropout.threshold);
    const unsigned long long k_tiles = operand<K_MAJOR>(tiles), v_tiles = operand<MN_MAJOR>(tiles);
    unsigned first = 0;  // number of the item's first tile
    for (unsigned i = 0;; i++) {
        const unsigned place = i % Q_STAGES;
        team.queries.wait_full(i);
        const Item& item = team.items[place];
        const unsigned rows = uniform(item.rows), keys = uniform(item.keys), paired = uniform(item.paired), head = uniform(item.head);
        if (rows == 0) return;
        const unsigned count = (keys + TILE - 1) / TILE, streams = 1 + paired;
        unsigned char* q_tile = q_tiles + place * Q_BYTES;
        const unsigned long long q_operand = operand<K_MAJOR>(q_tile);
        // Waits for a tile; where it is.
        const auto wait = [&](unsigned half, unsigned step) {
            const unsigned n = first + step * streams + half * paired;
            team.ring.wait_full(n);
            return Ring<STAGES>::place(n) * TILE_BYTES;
        };
        // The second half is the last to read what they share.
        const auto release = [&](unsigned half, unsigned step) {
            if (lane == 0 && half + paired > 0) team.ring.release(first + step * streams + half * paired);
        };
        // What the second half's last products before its turn with this tile have read.
        const auto release_before = [&](unsigned tile) {
            if (tile > 0) release(1, 2 * tile - 1);
            release(1, 2 * tile);
        };
        Half own[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (DROPOUT) own[half].row_key[h] = team.row_keys[place][(paired ? 0 : half * TILE) + thread_row + 8 * h];
                own[half].reference[h] = -INFINITY, own[half].total[h] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < HEAD / 2; j++) own[half].out[j] = 0.0f;
        }
        {
            unsigned k_tile = wait(0, 0);
            touch(own[0]);
            fence_products();
            begin_scores(own[0], q_operand, advance(k_tiles, k_tile));
            commit_products();
            k_tile = wait(1, 0);
            wait_products<0>();
            touch(own[0]), touch(own[1]);
            release(0, 0);
            fence_products();
            begin_scores(own[1], advance(q_operand, TILE_BYTES), advance(k_tiles, k_tile));
            commit_products();
        }
        // A turn waits for the other half's products.
        for (unsigned tile = 0; tile + 1 < count; tile++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                weigh<DROPOUT>(own[half], TILE, scale_log2, dropout, round_keys, bounds, head + half * paired, tile);
                const unsigned k_tile = wait(half, 2 * tile + 1);
                const unsigned v_tile = wait(half, 2 * tile + 2);
                wait_products<0>();
                touch(own[0]), touch(own[1]);
                if (half == 1)
                    release(0, 2 * tile + 1), release(0, 2 * tile + 2);
                else
                    release_before(tile);
                fence_products();
                begin_scores(own[half], advance(q_operand, half * TILE_BYTES), advance(k_tiles, k_tile));
                begin_out(own[half], advance(v_tiles, v_tile));
                commit_products();
            }
        }
        const unsigned left = keys - (count - 1) * TILE;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            weigh<DROPOUT>(own[half], left, scale_log2, dropout, round_keys, bounds, head + half * paired, count - 1);
            const unsigned v_tile = wait(half, 2 * count - 1);
            if (left < TILE && half <= paired) clear_rows(tiles + v_tile, left);
            wait_products<0>();
            touch(own[0]), touch(own[1]);
            if (half == 1)
                release(0, 2 * count - 1);
            else
                release_before(count - 1);
            fence_products();
            begin_out(own[half], advance(v_tiles, v_tile));
            commit_products();
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (half == 1) {
                wait_products<0>();
                touch(own[1]);
                release(1, 2 * count - 1);
            }
            const unsigned row = paired ? 0 : half * TILE, hidden = s.heads * HEAD;
            const size_t query = item.row + row, of_head = head + half * paired;
            finish(own[half], out + query * hidden + of_head * HEAD, hidden, lse + of_head * s.queries + query, q_tile + half * TILE_BYTES,
                   static_cast<int>(rows - row), DROPOUT ? dropout.scale / KEPT_FACTOR : 1.0f);
        }
        __syncwarp();
        if (lane == 0) team.queries.release(i);
        first += 2 * count * streams;
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void forward_sm90(bf16* out, float* lse, const TensorMap& q_map, const TensorMap& kv_map, const AttentionSizes& s,
                                             const Dropout& dropout, const RoundKeys& round_keys) {
    SHARED_ALIGNED(unsigned char, tiles);
    SHARED(ForwardTeam, teams, [TEAMS]);
    if (threadIdx.x == 0) {
        for (int i = 0; i < TEAMS; i++) teams[i].ring.init(WARPGROUP / WARP), teams[i].queries.init(WARPGROUP / WARP);
        publish_mbarriers();
    }
    __syncthreads();
    const unsigned group = uniform(threadIdx.x / WARPGROUP), warp = uniform(threadIdx.x % WARPGROUP / WARP);
    if (group == TEAMS) {
        give_registers<72>();
        if (warp < TEAMS) {
            unsigned char* own = tiles + warp * TEAM_BYTES;
            produce<DROPOUT>(teams[warp], TEAMS * blockIdx.x + warp, own, own + Q_STAGES * Q_BYTES, q_map, kv_map, s, dropout);
        }
    } else {
        take_registers<216>();
        unsigned char* own = tiles + group * TEAM_BYTES;
        consume<DROPOUT>(teams[group], own, own + Q_STAGES * Q_BYTES, out, lse, s, dropout, round_keys);
    }
}

}  // namespace attention

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1)
    attention_sm90_forward_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
                                AttentionSizes s, Dropout dropout, RoundKeys round_keys) {
    attention::forward_sm90<false>(out, lse, q_map, kv_map, s, dropout, round_keys);
}
EXPORT(attention_sm90_forward_bf16)

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1)
    attention_sm90_forward_dropout_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap kv_map,
                                        AttentionSizes s, Dropout dropout, RoundKeys round_keys) {
    attention::forward_sm90<true>(out, lse, q_map, kv_map, s, dropout, round_keys);
}
EXPORT(attention_sm90_forward_dropout_bf16)
