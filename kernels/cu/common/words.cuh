// 16 bytes of elements as they lie in memory, for kernels that hold many and widen them in several passes.
#pragma once
#include "common/base.cuh"

using Words = Vec<unsigned, 4>;

template <typename T>
__device__ __forceinline__ Words load_words(const T* p) {
    return load<4>(reinterpret_cast<const unsigned*>(p));
}

// Element j. A bf16 is the upper half of the f32 that it widens to.
template <typename T>
__device__ __forceinline__ float element(const Words& x, int j);
template <>
__device__ __forceinline__ float element<float>(const Words& x, int j) { return __uint_as_float(x.at[j]); }
template <>
__device__ __forceinline__ float element<bf16>(const Words& x, int j) {
    return __uint_as_float(j % 2 == 0 ? x.at[j / 2] << 16 : x.at[j / 2] & 0xffff0000u);
}

template <typename T>
__device__ __forceinline__ void set_element(Words& x, int j, float value);
template <>
__device__ __forceinline__ void set_element<float>(Words& x, int j, float value) { x.at[j] = __float_as_uint(value); }
template <>
__device__ __forceinline__ void set_element<bf16>(Words& x, int j, float value) {
    const unsigned bits = __bfloat16_as_ushort(narrow<bf16>(value)), shift = j % 2 == 0 ? 0 : 16;
    x.at[j / 2] = (x.at[j / 2] & ~(0xffffu << shift)) | bits << shift;
}

// The larger of each two elements; a NaN loses.
template <typename T>
__device__ __forceinline__ Words max_words(const Words& a, const Words& b);
template <>
__device__ __forceinline__ Words max_words<float>(const Words& a, const Words& b) {
    Words y;
#pragma unroll
    for (int i = 0; i < 4; i++) y.at[i] = __float_as_uint(fmaxf(__uint_as_float(a.at[i]), __uint_as_float(b.at[i])));
    return y;
}
template <>
__device__ __forceinline__ Words max_words<bf16>(const Words& a, const Words& b) {
    Words y;
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < 4; i++) asm("max.bf16x2 %0, %1, %2;" : "=r"(y.at[i]) : "r"(a.at[i]), "r"(b.at[i]));
#else
    for (int j = 0; j < 8; j++) set_element<bf16>(y, j, fmaxf(element<bf16>(a, j), element<bf16>(b, j)));
#endif
    return y;
}
