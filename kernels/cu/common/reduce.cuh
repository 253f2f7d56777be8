// Sums and maxima over a warp or a block, always in the same order.
#pragma once
#include "common/base.cuh"

template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The sum over the block, in every thread. `partials` is shared memory for one number a warp; blockDim.x is a multiple of
// 32 and the block has one dimension. All threads of the block call it.
template <typename T>
__device__ __forceinline__ T block_sum(T x, T* partials) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x = warp_sum(x);
    __syncthreads();  // the partials of an earlier call have been read
    if (lane == 0) partials[warp] = x;
    __syncthreads();
    T sum = partials[0];
    for (int i = 1; i < warps; i++) sum += partials[i];
    return sum;
}
