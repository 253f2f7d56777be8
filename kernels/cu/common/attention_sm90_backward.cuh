// What the one-pass attention backward is made of besides its roles: which key a row of an accumulator is, the dropout of
// transposed weights, and results on their way to memory.
#pragma once
#include "common/attention_sm90.cuh"

namespace attention {

// A block of 64 keys of a warpgroup, in the order of the rows of its accumulators: row r of warp w is this key. So the 16 rows of
// a warp are the 16 keys whose dropout one call of Philox draws: quad w of the draw.
__device__ __forceinline__ unsigned key_of_row(unsigned warp, unsigned row) { return row % 8 / 2 * 16 + row / 8 * 8 + 2 * warp + row % 2; }

// Four 8x8 matrices of bf16 to shared memory, the opposite of load_matrices.
__device__ __forceinline__ void store_matrices(void* row, const Fragment& f) {
#ifdef __CUDACC__
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(f.at[0]), "r"(f.at[1]),
                 "r"(f.at[2]), "r"(f.at[3])
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
__device__ __forceinline__ unsigned kept_bits(const Dropout& dropout, const unsigned (&row_keys)[2], unsigned head, unsigned block, unsigned warp) {
    constexpr unsigned HIGHEST = 0x80808080u;
    const unsigned threshold = dropout.threshold * 0x01010101u, low = threshold & ~HIGHEST;
    unsigned bits = 0;
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const Philox draw = attention_draw(dropout, row_keys[q], head, block, warp);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            // The highest bit of each byte of `above`: its lower seven bits are at least the threshold's. Of `kept`: the byte is.
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

// kept_bits of the query that a lane's accumulator has in chunk i of 4 and element e of the pair, and of the query 32 further if
// `second`: bit 31 is that of the lane's row, bit 15 that of the row + 8.
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

// A lane's two rows of an accumulator [64, 64], times a factor, to memory where there is such a row: h = 0, and 1 for the
// row + 8. All lanes of the warp call it.
__device__ __forceinline__ void store_rows(bf16* const (&rows)[2], const bool (&inside)[2], const float (&d)[HEAD / 2], float factor) {
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
