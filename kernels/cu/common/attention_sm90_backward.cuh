// What the roles of the one-pass attention backward share: the block's memory, its list of work, which key a row of an
// accumulator is, the dropout of transposed weights, and results on their way to memory.
#pragma once
#include "common/attention_sm90.cuh"

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

__device__ __forceinline__ unsigned tiles_in(unsigned rows) { return (rows + TILE - 1) / TILE; }

// How many items this block has. Sorted, items go to blocks from the first to the last, then from the last to the
// first, and so on.
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
        if (b < sequences) cost = tiles_in(s.cu_k[b + 1] - s.cu_k[b]) * (1 + tiles_in(s.cu_q[b + 1] - s.cu_q[b]));
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
            const unsigned q = s.cu_q[b], k = s.cu_k[b];
            shared.items[round] = {q, s.cu_q[b + 1] - q, k, s.cu_k[b + 1] - k, place % s.heads};
        }
    }
    __syncthreads();
}

// An item as all lanes know it.
__device__ __forceinline__ WorkItem item_of(const BackwardShared& shared, unsigned round) {
    const WorkItem item = shared.items[round];
    const unsigned q_start = uniform(item.q_start), k_start = uniform(item.k_start);
    return {q_start, uniform(item.queries), k_start, uniform(item.keys), uniform(item.head)};
}

// With dropout, what stands for ds is p (m dp - D / scale), m being 0 or 1 and `scale` dropout's: no weight is scaled.
// This is what its sums dq and dk are multiplied by.
template <bool DROPOUT>
__device__ __forceinline__ float sum_factor(const AttentionSizes& s, const Dropout& dropout) {
    return DROPOUT ? s.scale * dropout.scale : s.scale;
}

// A block of 64 keys of a warpgroup, in the order of the rows of its accumulators: row r of warp w is this key. So the
// 16 rows of a warp are the 16 keys whose dropout one call of Philox draws: quad w of the draw.
__device__ __forceinline__ unsigned key_of_row(unsigned warp, unsigned row) {
    return row % 8 / 2 * 16 + row / 8 * 8 + 2 * warp + row % 2;
}

// Four 8x8 matrices of bf16 to shared memory, the opposite of load_matrices.
__device__ __forceinline__ void store_matrices(void* row, const Fragment& f) {
#ifdef __CUDACC__
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
                 "r"(f.at[0]), "r"(f.at[1]), "r"(f.at[2]), "r"(f.at[3])
                 : "memory");
#else
    void* const* rows = emulator::exchange(ALL_LANES, row);
    const unsigned lane = emulator::current->lane;
    for (unsigned m = 0; m < 4; m++) static_cast<unsigned*>(rows[8 * m + lane / 4])[lane % 4] = f.at[m];
    __syncwarp();
#endif
}

// The opposite of load_a: rows from `row`, columns from 16 * step.
__device__ __forceinline__ void store_a(unsigned char* tile, int row, int step, const Fragment& f) {
    store_matrices(chunk_at(tile, row + lane_id() % 16, 2 * step + lane_id() / 16), f);
}

// Which weights of a warp's 16 keys and of queries `lane` and `lane` + 32 are kept: bit k of byte c is that of row
// 2 k + c % 2 + 8 (c / 2), bit k + 4 that of the second query.
__device__ __forceinline__ unsigned kept_bits(const Dropout& dropout, const unsigned (&row_keys)[2], unsigned head,
                                              unsigned block, unsigned warp) {
    constexpr unsigned HIGHEST = 0x80808080u;
    const unsigned threshold = dropout.threshold * 0x01010101u, low = threshold & ~HIGHEST;
    unsigned bits = 0;
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const Philox draw = attention_draw(dropout, row_keys[q], head, block, warp);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            // The highest bit of a byte of `above` says that the other seven are not below the threshold's, that of
            // `kept` that the byte is not.
            const unsigned bytes = draw.at[k], above = (bytes | HIGHEST) - low;
            const unsigned kept = (bytes & ~threshold) | (bytes & above) | (~threshold & above);
            bits |= (kept & HIGHEST) >> (7 - 4 * q - k);
        }
    }
    return bits;
}

// Has the compiler know this value before the lines below.
__device__ __forceinline__ void pin(unsigned& x) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(x)::"memory");
#endif
}

// kept_bits of the query that a lane's accumulator has in chunk i of 4 and element e of the pair, and of the query 32
// further if `second`: bit 31 is that of the lane's row, bit 15 that of the row + 8.
__device__ __forceinline__ unsigned kept_query(unsigned bits, int i, int e) {
    return __shfl_sync(ALL_LANES, bits, 8 * i + 2 * (lane_id() % 4) + e);
}
__device__ __forceinline__ unsigned kept_rows(unsigned query_bits, bool second) {
    const unsigned row = lane_id() / 4, turn = 31 - (row % 2 * 8 + row / 2) - (second ? 4 : 0);
    return __funnelshift_l(query_bits, query_bits, turn);
}

// A weight, with its sign set if bit 31 is not: it is dropped.
__device__ __forceinline__ float signed_weight(float weight, unsigned kept) {
    return __uint_as_float(__float_as_uint(weight) | (~kept & 0x80000000u));
}

// 1 for a weight that is not dropped, and is not 0; else 0.
__device__ __forceinline__ float positive(float weight) {
#ifdef __CUDACC__
    float one;
    asm("set.gt.f32.f32 %0, %1, 0f00000000;" : "=f"(one) : "f"(weight));
    return one;
#else
    return weight > 0.0f ? 1.0f : 0.0f;
#endif
}

// Two of them rounded, those that are dropped to 0.
__device__ __forceinline__ unsigned pack_kept(float low, float high) {
#ifdef __CUDACC__
    unsigned packed;
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return pack_bf16(low > 0.0f ? low : 0.0f, high > 0.0f ? high : 0.0f);
#endif
}

// Four words of each of the four lanes of a quad, transposed: word i of lane q becomes word q of lane i.
__device__ __forceinline__ void transpose_quad(unsigned (&x)[4]) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
        const bool upper = lane_id() & bit;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            const unsigned got = __shfl_xor_sync(ALL_LANES, upper ? x[i] : x[i + bit], bit);
            x[i] = upper ? got : x[i];
            x[i + bit] = upper ? x[i + bit] : got;
        }
    }
}

// A lane's two rows of an accumulator [64, 64], times a factor, to memory where there is such a row: h = 0, and 1 for
// the row + 8. All lanes of the warp call it.
__device__ __forceinline__ void store_rows(bf16* const (&rows)[2], const bool (&inside)[2],
                                           const float (&d)[HEAD / 2], float factor) {
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int at = 16 * half + 4 * i + 2 * h;
                words[i] = pack_bf16(d[at] * factor, d[at + 1] * factor);
            }
            transpose_quad(words);
            unsigned* const to = reinterpret_cast<unsigned*>(rows[h] + 32 * half + lane_id() % 4 * 8);
            if (inside[h]) store<4>(to, Vec<unsigned, 4>{{words[0], words[1], words[2], words[3]}});
        }
}

}  // namespace attention
