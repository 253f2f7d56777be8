// Forward attention over packed sequences for sm_90a (TMA, wgmma): bf16, heads of 64 elements.
//
//   out = dropout(softmax(q k^T / 8)) v
//
// q [R, 64] and k, v [T, 64] are heads of rows of packed buffers, which two tensor maps describe: one of q, and one of k with v
// after it in each row. out [R, H] is aligned to 16 bytes. Saved for backward: out and lse [heads, R], the log-sum-exp of each
// query's scaled scores.
//
// Blocks stay, one to a multiprocessor. A block is two teams that share nothing: a warpgroup, and a warp that loads for it. A team
// works on items (common/attention_items.cuh) of two halves of 64 queries each, which take turns: while the products of one
// half run, out += p v of a tile of 64 keys and scores = q k^T of the next, the other half's scores become weights. Scores never
// leave the registers: softmax runs along with the keys (Milakov and Gimelshein, 2018; Dao, "FlashAttention-2", 2023), and rounded
// to bf16 the weights are the operand of the second product as they lie. Scores and sums are f32.
//
// Cycles of one of the four quarters of a multiprocessor for 64 queries and 64 keys, a quarter of which are one warp's:
//   products      256: 2 * 2 * 64^3 FLOPs at 4,096 a cycle and multiprocessor
//   exponentials  256: 32 instructions, 8 cycles each
//   issue         about 185 without dropout, 310 with it: 64 for difference and sum, 32 exponentials, 16 for rounding; 48 for
//                 the factors of dropout, 75 for two calls of Philox; the rest is bookkeeping, half of it of products
//   shared memory 192: 24 KiB that products read, at 128 bytes a cycle
// All run side by side at best. Two warps are on each quarter, so that dropout hides only as far as instructions are issued
// back to back: what is spared is instructions. The largest score of a row is looked for in its first tile alone, and again where a
// sum of weights tells that it was left far behind; Philox's keys are parameters of the kernel. Bytes are few: 8 n 64 for a
// head, and from the second-level cache keys and values once for 128 queries.
//
// Relied on: a sequence with queries has keys; where it has none, its outputs are not written.
#include "common/attention_items.cuh"
#include "common/attention_sm90.cuh"

namespace attention {

constexpr int TEAMS = 2, BLOCK_THREADS = (TEAMS + 1) * WARPGROUP;
constexpr int STAGES = 8, Q_STAGES = 2, Q_BYTES = 2 * TILE_BYTES;
constexpr int TEAM_BYTES = Q_STAGES * Q_BYTES + STAGES * TILE_BYTES;
// Registers of the threads of a producer and of a team; the block is compiled for 168 each.
constexpr int PRODUCER_REGISTERS = 72, TEAM_REGISTERS = 216;
// Of a thread's 16 weights of a row, relative to the row's reference: far from overflows, and seldom reached.
constexpr float LARGEST_SUM = 65536.0f;

// What a team and its producer share besides tiles.
struct ForwardTeam {
    Ring<STAGES> ring;
    Ring<Q_STAGES> queries;
    Item items[Q_STAGES];
    unsigned row_keys[Q_STAGES][ITEM_ROWS];
    ItemTable table;
};

// One lane: an item's keys and values in the order of their use. Keys are one tile ahead: k0, k1, v0, k2, v1, ...; in a paired
// item each is one tile for the first half and one for the second. Returns the number after the last tile.
__device__ __forceinline__ unsigned load_tiles(Ring<STAGES>& ring, unsigned n, unsigned char* tiles, const TensorMap& kv_map,
                                               const Item& item, unsigned heads) {
    const unsigned steps = 2 * ((item.keys + TILE - 1) / TILE);
    for (unsigned step = 0; step < steps; step++) {
        const bool is_key = step == 0 || (step % 2 == 1 && step + 1 < steps);
        const unsigned row = item.first_key + (is_key ? (step + 1) / 2 : (step - 1) / 2) * TILE;
        const unsigned head = item.head + (is_key ? 0 : heads);
        for (unsigned half = 0; half <= item.paired; half++, n++) {
            Mbarrier& full = ring.fill(n, TILE_BYTES);
            tma_load(tiles + ring.place(n) * TILE_BYTES, kv_map, row, (head + half) * HEAD, full);
        }
    }
    return n;
}

// A warp: its team's items one after the other, their queries, keys and values.
template <bool DROPOUT>
__device__ __forceinline__ void produce(ForwardTeam& team, unsigned worker, unsigned char* q_tiles, const TensorMap& q_map,
                                        const TensorMap& kv_map, const AttentionSizes& s, const Dropout& dropout) {
    const unsigned lane = threadIdx.x % WARP;
    if (lane == 0) tma_prefetch(q_map), tma_prefetch(kv_map);
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
            for (unsigned half = 0; half < 2 && item.rows != 0; half++)
                tma_load(q_tiles + place * Q_BYTES + half * TILE_BYTES, q_map, item.row + (item.paired ? 0 : half * TILE),
                         (item.head + (item.paired ? half : 0)) * HEAD, full);
            n = load_tiles(team.ring, n, q_tiles + Q_STAGES * Q_BYTES, kv_map, item, s.heads);
        }
        if (item.rows == 0) return;
    }
}

// A thread's part of half an item: rows 16 * warp + lane / 4 + 8 h are index [h].
struct Half {
    float scores[TILE / 2];
    float out[HEAD / 2];
    Fragment p[TILE / 16];  // the second product's operand
    float reference[2];     // the scaled score, in powers of two, that weights are relative to
    float total[2];         // of this thread's keys
    unsigned row_key[2];
};

// What turns scores into weights.
struct Weights {
    const Dropout& dropout;
    const RoundKeys& round_keys;
    KeptBounds bounds;
    float scale_log2;

    __device__ __forceinline__ Weights(const Dropout& dropout, const RoundKeys& round_keys, float scale)
        : dropout(dropout), round_keys(round_keys), bounds(dropout.threshold), scale_log2(scale * LOG2_E) {}

    // References rise to the largest scores, and the sums so far, which are complete, follow.
    __device__ __forceinline__ void raise_references(Half& own) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = own.scores[2 * h];
#pragma unroll
            for (int i = 0; i < TILE / 2; i++)
                if (i % 4 / 2 == h) most = fmaxf(most, own.scores[i]);
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
            const float now = fmaxf(own.reference[h], most * scale_log2), shrink = fast_exp2(own.reference[h] - now);
            own.reference[h] = now;
            own.total[h] *= shrink;
#pragma unroll
            for (int i = 0; i < HEAD / 2; i++)
                if (i % 4 / 2 == h) own.out[i] *= shrink;
        }
    }

    // The weights of row h of each 8 as the second product's operand; the sum of those that this thread has.
    template <bool DROPOUT>
    __device__ __forceinline__ float weigh_row(Half& own, int h, unsigned head, unsigned tile) const {
        Philox draw = {};
        if (DROPOUT) draw = attention_draw(dropout, round_keys, own.row_key[h], head, tile, threadIdx.x % 4);
        float sum[2];
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
            const float low = fast_exp2(fmaf(own.scores[4 * i + 2 * h], scale_log2, -own.reference[h]));
            const float high = fast_exp2(fmaf(own.scores[4 * i + 2 * h + 1], scale_log2, -own.reference[h]));
            sum[0] = i == 0 ? low : sum[0] + low, sum[1] = i == 0 ? high : sum[1] + high;
            unsigned word = pack_bf16(low, high);
            if (DROPOUT) {
                const unsigned bytes = draw.at[i / 2];
                word = multiply_bf16(word, i % 2 == 0 ? kept_factors<0>(bytes, bounds) : kept_factors<1>(bytes, bounds));
            }
            own.p[i / 2].at[i % 2 * 2 + h] = word;
        }
        return sum[0] + sum[1];
    }

    // The weights of a tile, of which `keys` exist. The largest score is asked for in the first tile, and later only where sums
    // tell that the references are too low.
    template <bool DROPOUT>
    __device__ __forceinline__ void weigh(Half& own, unsigned keys, unsigned head, unsigned tile) const {
        if (keys < TILE) {
#pragma unroll
            for (int i = 0; i < TILE / 2; i++)
                if (i / 4 * 8 + 2 * (threadIdx.x % 4) + i % 2 >= keys) own.scores[i] = -INFINITY;
        }
        if (tile == 0) raise_references(own);
        float sum[2];
#pragma unroll 1
        for (;;) {
#pragma unroll
            for (int h = 0; h < 2; h++) sum[h] = weigh_row<DROPOUT>(own, h, head, tile);
            if (!__any_sync(ALL_LANES, fmaxf(sum[0], sum[1]) > LARGEST_SUM)) break;
            raise_references(own);
        }
        own.total[0] += sum[0], own.total[1] += sum[1];
    }
};

// scores = q k^T
__device__ __forceinline__ void begin_scores(Half& own, unsigned long long q, unsigned long long k) {
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
        wgmma<TILE, K_MAJOR, K_MAJOR>(own.scores, advance(q, 32 * step), advance(k, 32 * step), step > 0);
}

// out += p v
__device__ __forceinline__ void begin_out(Half& own, unsigned long long v) {
#pragma unroll
    for (int step = 0; step < TILE / 16; step++)
        wgmma<HEAD, MN_MAJOR>(own.out, own.p[step], advance(v, 16 * ROW_BYTES * step));
}

// Until all products are complete, which all registers of both halves then show.
__device__ __forceinline__ void end_products(Half (&own)[2]) {
    wait_products<0>();
#pragma unroll
    for (int half = 0; half < 2; half++) hold(own[half].scores), hold(own[half].out);
}

// Zeros the rows of a tile from `rows` on, which are another sequence's: a weight of 0 would not hide what is not finite there.
__device__ __forceinline__ void clear_rows(unsigned char* tile, unsigned rows) {
    for (unsigned at = rows * CHUNKS + threadIdx.x % WARPGROUP; at < TILE * CHUNKS; at += WARPGROUP)
        store<4>(reinterpret_cast<unsigned*>(tile + 16 * at), Vec<unsigned, 4>{});
    fence_async();
    sync_named(1 + threadIdx.x / WARPGROUP, WARPGROUP);
}

// An item's tiles, as the team reads them.
struct Tiles {
    Ring<STAGES>& ring;
    unsigned first, paired;  // the item's first tile; 1: the halves have tiles of their own

    __device__ __forceinline__ unsigned number(unsigned half, unsigned step) const { return first + step * (1 + paired) + half * paired; }
    // Waits for a tile; where it is, in bytes.
    __device__ __forceinline__ unsigned wait(unsigned half, unsigned step) const {
        ring.wait_full(number(half, step));
        return ring.place(number(half, step)) * TILE_BYTES;
    }
    // A half has read its tile; of shared tiles the second half is the last reader.
    __device__ __forceinline__ void release(unsigned half, unsigned step) const {
        if (threadIdx.x % WARP == 0 && half + paired > 0) ring.release(number(half, step));
    }
    // What a half's products before its turn with a tile have read: the tile's keys, the values of the one before.
    __device__ __forceinline__ void release_before(unsigned half, unsigned tile) const {
        if (tile > 0) release(half, 2 * tile - 1);
        release(half, 2 * tile);
    }
};

// All of an item's keys and values. One long function: the compiler is to see both halves of a turn at once, and keeps products
// asynchronous only where it sees all of their registers. Before a half's products begin the other's are waited for.
template <bool DROPOUT>
__device__ __forceinline__ void attend(Half (&own)[2], const Weights& weights, const Tiles& of, unsigned char* tiles,
                                       unsigned long long q, unsigned keys, unsigned head) {
    const unsigned long long k = operand<K_MAJOR>(tiles), v = operand<MN_MAJOR>(tiles);
    const unsigned last = (keys + TILE - 1) / TILE - 1, left = keys - last * TILE;
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        const unsigned k_tile = of.wait(half, 0);
        end_products(own);
        if (half == 1) of.release_before(0, 0);
        fence_products();
        begin_scores(own[half], advance(q, half * TILE_BYTES), advance(k, k_tile));
        commit_products();
    }
    for (unsigned tile = 0; tile < last; tile++) {
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            weights.weigh<DROPOUT>(own[half], TILE, head + half * of.paired, tile);
            const unsigned k_tile = of.wait(half, 2 * tile + 1), v_tile = of.wait(half, 2 * tile + 2);
            end_products(own);
            of.release_before(1 - half, tile + half);
            fence_products();
            begin_scores(own[half], advance(q, half * TILE_BYTES), advance(k, k_tile));
            begin_out(own[half], advance(v, v_tile));
            commit_products();
        }
    }
#pragma unroll
    for (unsigned half = 0; half < 2; half++) {
        weights.weigh<DROPOUT>(own[half], left, head + half * of.paired, last);
        const unsigned v_tile = of.wait(half, 2 * last + 1);
        if (left < TILE && half <= of.paired) clear_rows(tiles + v_tile, left);
        end_products(own);
        if (half == 0)
            of.release_before(1, last);
        else
            of.release(0, 2 * last + 1);
        fence_products();
        begin_out(own[half], advance(v, v_tile));
        commit_products();
    }
}

// Outputs and log-sum-exps of 64 queries, as far as they are below `rows`, by way of their tile.
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

// A team: its items.
template <bool DROPOUT>
__device__ __forceinline__ void consume(ForwardTeam& team, unsigned char* q_tiles, bf16* out, float* lse, const AttentionSizes& s,
                                        const Dropout& dropout, const RoundKeys& round_keys) {
    const unsigned thread_row = threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4, hidden = s.heads * HEAD;
    const float dropout_scale = DROPOUT ? dropout.scale / KEPT_FACTOR : 1.0f;
    const Weights weights(dropout, round_keys, s.scale);
    unsigned first = 0;  // number of the item's first tile
    for (unsigned i = 0;; i++) {
        const unsigned place = i % Q_STAGES;
        team.queries.wait_full(i);
        const Item& item = team.items[place];
        const unsigned rows = uniform(item.rows), keys = uniform(item.keys), head = uniform(item.head), paired = uniform(item.paired);
        if (rows == 0) return;
        unsigned char* q_tile = q_tiles + place * Q_BYTES;
        Half own[2];
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (DROPOUT) own[half].row_key[h] = team.row_keys[place][(paired ? 0 : half * TILE) + thread_row + 8 * h];
                own[half].reference[h] = -INFINITY, own[half].total[h] = 0.0f;
            }
#pragma unroll
            for (int j = 0; j < HEAD / 2; j++) own[half].out[j] = 0.0f;
        }
        const Tiles of{team.ring, first, paired};
        attend<DROPOUT>(own, weights, of, q_tiles + Q_STAGES * Q_BYTES, operand<K_MAJOR>(q_tile), keys, head);
        const unsigned steps = 2 * ((keys + TILE - 1) / TILE);
#pragma unroll
        for (unsigned half = 0; half < 2; half++) {
            if (half == 1) {
                end_products(own);
                of.release(1, steps - 1);
            }
            const unsigned row = paired ? 0 : half * TILE;
            const size_t query = item.row + row, own_head = head + half * paired;
            finish(own[half], out + query * hidden + own_head * HEAD, hidden, lse + own_head * s.queries + query,
                   q_tile + half * TILE_BYTES, static_cast<int>(rows - row), dropout_scale);
        }
        __syncwarp();
        if (lane_id() == 0) team.queries.release(i);
        first += steps * (1 + paired);
    }
}

template <bool DROPOUT>
__device__ __forceinline__ void forward_sm90(bf16* out, float* lse, const TensorMap& q_map, const TensorMap& kv_map,
                                             const AttentionSizes& s, const Dropout& dropout, const RoundKeys& round_keys) {
    SHARED_ALIGNED(unsigned char, tiles);
    SHARED(ForwardTeam, teams, [TEAMS]);
    if (threadIdx.x == 0) {
        for (int i = 0; i < TEAMS; i++) teams[i].ring.init(WARPGROUP / WARP), teams[i].queries.init(WARPGROUP / WARP);
        publish_mbarriers();
    }
    __syncthreads();
    const unsigned group = uniform(threadIdx.x / WARPGROUP), warp = uniform(threadIdx.x % WARPGROUP / WARP);
    if (group == TEAMS) {
        give_registers<PRODUCER_REGISTERS>();
        if (warp < TEAMS) produce<DROPOUT>(teams[warp], TEAMS * blockIdx.x + warp, tiles + warp * TEAM_BYTES, q_map, kv_map, s, dropout);
    } else {
        take_registers<TEAM_REGISTERS>();
        consume<DROPOUT>(teams[group], tiles + group * TEAM_BYTES, out, lse, s, dropout, round_keys);
    }
}

}  // namespace attention

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1)
    attention_sm90_forward_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map,
                                const __grid_constant__ TensorMap kv_map, AttentionSizes s, Dropout dropout, RoundKeys round_keys) {
    attention::forward_sm90<false>(out, lse, q_map, kv_map, s, dropout, round_keys);
}
EXPORT(attention_sm90_forward_bf16)

extern "C" __global__ void __launch_bounds__(attention::BLOCK_THREADS, 1)
    attention_sm90_forward_dropout_bf16(bf16* out, float* lse, const __grid_constant__ TensorMap q_map,
                                        const __grid_constant__ TensorMap kv_map, AttentionSizes s, Dropout dropout,
                                        RoundKeys round_keys) {
    attention::forward_sm90<true>(out, lse, q_map, kv_map, s, dropout, round_keys);
}
EXPORT(attention_sm90_forward_dropout_bf16)
