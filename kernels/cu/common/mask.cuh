// The dropout masks of hidden states as kernels apply them to the 16 bytes that a lane loads at once.
//
// One Philox call gives the bytes of 16 columns, so lanes that are neighbours need the same call. A row that one warp holds
// shares it: see row_bytes().
#pragma once
#include "common/philox.cuh"

// The bytes of WIDE<T> neighbouring columns, four in a word.
template <typename T>
struct MaskBytes {
    unsigned at[WIDE<T> / 4];
};

template <typename T>
__device__ __forceinline__ float masked(const Dropout& d, const MaskBytes<T>& bytes, int i, float x) {
    return ((bytes.at[i / 4] >> (8 * (i % 4))) & 0xffu) < d.threshold ? 0.0f : x * d.scale;
}

// The bytes of columns `column` on, a multiple of WIDE<T>, by a call of its own.
template <typename T>
__device__ __forceinline__ MaskBytes<T> vector_bytes(const Dropout& d, unsigned row_key, unsigned column) {
    const Philox draw = hidden_draw(d, row_key, column / 16);
    if constexpr (WIDE<T> == 8) {
        const bool upper = column & 8;
        return {{upper ? draw.at[2] : draw.at[0], upper ? draw.at[3] : draw.at[1]}};
    } else {
        const unsigned low = column & 4 ? draw.at[1] : draw.at[0], high = column & 4 ? draw.at[3] : draw.at[2];
        return {{column & 8 ? high : low}};
    }
}

// A single column, for rows that no vector fits.
__device__ __forceinline__ float masked_column(const Dropout& d, unsigned row_key, unsigned column, float x) {
    const Philox draw = hidden_draw(d, row_key, column / 16);
    const unsigned low = column & 4 ? draw.at[1] : draw.at[0], high = column & 4 ? draw.at[3] : draw.at[2];
    const unsigned word = column & 8 ? high : low;
    return ((word >> (8 * (column % 4))) & 0xffu) < d.threshold ? 0.0f : x * d.scale;
}

// Where vector `v` of a lane begins in a row that one warp holds.
template <typename T>
__device__ __forceinline__ unsigned lane_column(int v) {
    return (v * WARP + threadIdx.x % WARP) * WIDE<T>;
}

// The bytes of the vectors that begin at columns at(0), at(1), ...; all lanes of the warp call it, and those of two neighbours are
// neighbours. In bf16 two neighbouring lanes make the calls of two vectors between them and exchange the halves; in f32,
// which is there for parity, each lane makes its own.
template <typename T, int VECS, typename At>
__device__ __forceinline__ void row_bytes(MaskBytes<T> (&bytes)[VECS], const Dropout& d, unsigned row_key, At at) {
    constexpr int PAIRED = WIDE<T> == 8 ? VECS / 2 * 2 : 0;
    if constexpr (PAIRED > 0) {
        const bool odd = threadIdx.x & 1;
#pragma unroll
        for (int v = 0; v < PAIRED; v += 2) {
            const Philox draw = hidden_draw(d, row_key, (odd ? at(v + 1) : at(v)) / 16);
#pragma unroll
            for (int word = 0; word < 2; word++) {
                const unsigned keep = odd ? draw.at[2 + word] : draw.at[word];
                const unsigned got = __shfl_xor_sync(ALL_LANES, odd ? draw.at[word] : draw.at[2 + word], 1);
                bytes[v].at[word] = odd ? got : keep;
                bytes[v + 1].at[word] = odd ? keep : got;
            }
        }
    }
#pragma unroll
    for (int v = PAIRED; v < VECS; v++) bytes[v] = vector_bytes<T>(d, row_key, at(v));
}
