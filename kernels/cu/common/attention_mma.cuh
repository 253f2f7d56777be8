// What the attention kernels on tensor cores share: tiles of a head's rows in shared memory, their fragments, dropout masks.
//
// A tile is rows of 64 bf16, 128 bytes, in 8 chunks of 16 bytes. Chunk c of row r lies at place c ^ (r % 8), so that the same
// chunk of 8 rows, which ldmatrix reads at once, is spread over all banks without padding.
#pragma once
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/fast.cuh"
#include "common/mma.cuh"

namespace attention {

constexpr int HEAD = 64, THREADS = 128, WARPS = THREADS / WARP;
constexpr int ROW_BYTES = HEAD * 2, CHUNKS = ROW_BYTES / 16;
// Keys of a block of draws, and rows of the tiles that are streamed.
constexpr int TILE = 64, TILE_BYTES = TILE * ROW_BYTES;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / WARP; }

__device__ __forceinline__ unsigned char* chunk_at(unsigned char* tile, int row, int chunk) {
    return tile + row * ROW_BYTES + ((chunk ^ row % CHUNKS) << 4);
}

// Begins to copy ROWS rows of a head; those from `valid` on become zeros.
template <int ROWS>
__device__ __forceinline__ void copy_tile(unsigned char* tile, const bf16* rows, size_t stride, int valid) {
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
        const bool inside = row < valid;
        copy_async16(chunk_at(tile, row, chunk), rows + (inside ? row : 0) * stride + chunk * 8, inside);
    }
}

// A [16, 16]: rows from `row`, columns from 16 * step.
__device__ __forceinline__ Fragment load_a(unsigned char* tile, int row, int step) {
    return load_matrices(chunk_at(tile, row + lane_id() % 16, 2 * step + lane_id() / 16));
}

// Two B [16, 8] of the transposed tile: B's rows are the tile's columns from 16 * step, B's columns its rows from `row`.
__device__ __forceinline__ Fragment load_b_of_columns(unsigned char* tile, int row, int step) {
    return load_matrices(chunk_at(tile, row + lane_id() / 16 * 8 + lane_id() % 8, 2 * step + lane_id() / 8 % 2));
}

// Two B [16, 8] of the tile itself: rows from `row`, columns from 16 * step.
__device__ __forceinline__ Fragment load_b_of_rows(unsigned char* tile, int row, int step) {
    return load_matrices_transposed(chunk_at(tile, row + lane_id() % 16, 2 * step + lane_id() / 16));
}

__device__ __forceinline__ void mma_pair(Accumulator& left, Accumulator& right, const Fragment& a, const Fragment& b) {
    mma(left, a, b.at[0], b.at[1]);
    mma(right, a, b.at[2], b.at[3]);
}

// 16 rows of a head from accumulators, times a factor for the first 8 and the last 8 rows, to rows of a tile.
__device__ __forceinline__ void round_to_tile(unsigned char* tile, int row, const Accumulator (&acc)[CHUNKS], float low_factor, float high_factor) {
    const int at = row + lane_id() / 4, quad = lane_id() % 4;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
        const unsigned low = pack_bf16(acc[n].at[0] * low_factor, acc[n].at[1] * low_factor);
        const unsigned high = pack_bf16(acc[n].at[2] * high_factor, acc[n].at[3] * high_factor);
        *reinterpret_cast<unsigned*>(chunk_at(tile, at, n) + 4 * quad) = low;
        *reinterpret_cast<unsigned*>(chunk_at(tile, at + 8, n) + 4 * quad) = high;
    }
}

// A warp's ROWS rows of a tile from `row` on to memory, as far as they are below `valid`.
template <int ROWS>
__device__ __forceinline__ void store_tile(bf16* rows, size_t stride, unsigned char* tile, int row, int valid) {
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / WARP; i++) {
        const int at = row + i * (WARP / CHUNKS) + lane_id() / CHUNKS, chunk = lane_id() % CHUNKS;
        if (at < valid) store<8>(rows + at * stride + chunk * 8, load<8>(reinterpret_cast<const bf16*>(chunk_at(tile, at, chunk))));
    }
}

// Bit 7 of each byte says whether the byte is at least that of `threshold`, which holds it four times: the rounded-up mean of
// a byte and the complement of the threshold is at least 128.
__device__ __forceinline__ unsigned kept_signs(unsigned bytes, unsigned threshold) {
    return (bytes | ~threshold) - (((bytes ^ ~threshold) >> 1) & 0x7f7f7f7fu);
}

// A mask of four bytes: byte i is filled with bit 7 of byte `nibble i of selector, minus 8` of y:x.
__device__ __forceinline__ unsigned spread_signs(unsigned x, unsigned y, unsigned selector) {
#ifdef __CUDACC__
    unsigned mask;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(x), "r"(y), "r"(selector));
    return mask;
#else
    return __byte_perm(x, y, selector);
#endif
}

__device__ __forceinline__ float masked(float x, unsigned mask) { return __uint_as_float(__float_as_uint(x) & mask); }

// Which of a query's 16 weights that a lane holds in a C tile's row are kept: bit 7 of byte 2 i + {0, 1} is that of keys
// 64 block + 8 i + 2 quad + {0, 1}.
__device__ __forceinline__ Philox kept_weights(const Dropout& dropout, unsigned row_key, unsigned head, unsigned block, unsigned quad) {
    Philox draw = attention_draw(dropout, row_key, head, block, quad);
#pragma unroll
    for (int w = 0; w < 4; w++) draw.at[w] = kept_signs(draw.at[w], dropout.threshold * 0x01010101u);
    return draw;
}

}  // namespace attention
