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
    unsigned bits = 0;
#pragma unroll
    for (int q = 0; q < 2; q++) {
        const Philox kept = kept_weights(dropout, row_keys[q], head, block, warp);
#pragma unroll
        for (int k = 0; k < 4; k++) bits |= (kept.at[k] & 0x80808080u) >> (7 - 4 * q - k);
    }
    return bits;
}

// Has the compiler know this value before the lines below.
__device__ __forceinline__ void pin(unsigned& x) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(x)::"memory");
#endif
}

// The same for a lane's accumulator: signs of its rows for the queries 8 i + 2 (lane % 4) + {0, 1}, and of those 32 further.
// That of the row is in byte row % 2, that of the row + 8 two bytes further.
struct KeptSigns {
    unsigned at[2][2];  // [32 queries further][which of the two]
};
__device__ __forceinline__ KeptSigns kept_signs_of(unsigned bits, int i) {
    KeptSigns signs;
#pragma unroll
    for (int e = 0; e < 2; e++) {
        signs.at[1][e] = __shfl_sync(ALL_LANES, bits, 8 * i + 2 * (lane_id() % 4) + e) << (3 - lane_id() / 8);
        signs.at[0][e] = signs.at[1][e] << 4;
    }
    return signs;
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
