// The device's approximate functions, flushing denormal numbers to 0: for results that are rounded to bf16.
#pragma once
#include "common/base.cuh"

// 2^x, off by 2 units in the last place of f32.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// 1 / x, off by 1 unit in the last place of f32.
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef __CUDACC__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}
