// Between the vectors that memory holds and the floats that kernels compute with.
#pragma once
#include "common/base.cuh"

// Neighbouring floats, by loads and stores of 16 bytes; N is a multiple of 4.
template <int N>
__device__ __forceinline__ void load_floats(float (&x)[N], const float* p) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        const Vec<float, 4> part = load<4>(p + i);
#pragma unroll
        for (int j = 0; j < 4; j++) x[i + j] = part.at[j];
    }
}

template <int N>
__device__ __forceinline__ void store_floats(float* p, const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 4) store<4>(p + i, Vec<float, 4>{{x[i], x[i + 1], x[i + 2], x[i + 3]}});
}

// Rounded; two bf16 take one instruction.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> narrowed(const float (&x)[N]) {
    Vec<T, N> y;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            const __nv_bfloat162 pair = __floats2bfloat162_rn(x[i], x[i + 1]);
            y.at[i] = pair.x;
            y.at[i + 1] = pair.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) y.at[i] = narrow<T>(x[i]);
    }
    return y;
}
