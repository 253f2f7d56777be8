// What every kernel file includes: the compiler's types, or those of the emulator (kernels/emulator), which runs the same
// files on the CPU. A kernel file names neither: it is written once.
//
//   SHARED(float, tile, [32][33]);      static shared memory of a block
//   SHARED_DYNAMIC(unsigned char, raw); the launch's dynamic shared memory, aligned to 16 bytes
//   SHARED_ALIGNED(unsigned char, raw); the same, aligned to 1,024 bytes as swizzled tiles are
//   extern "C" __global__ void f(...) { ... }
//   EXPORT(f)                           lets the emulator find the kernel by its name
#pragma once
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <stdint.h>
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define SHARED_DYNAMIC(type, name)                                     \
    extern __shared__ __align__(16) unsigned char dynamic_shared_[];   \
    type* name = reinterpret_cast<type*>(dynamic_shared_)
extern __shared__ __align__(1024) unsigned char shared_aligned_[];
#define SHARED_ALIGNED(type, name) type* name = reinterpret_cast<type*>(shared_aligned_)
#define EXPORT(kernel)
#else
#include "emulator.h"
#endif

using bf16 = __nv_bfloat16;
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float x) { return __float2bfloat16_rn(x); }

// N elements that are loaded and stored at once; 16 bytes are the widest access there is.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
    T at[N];
};

// Elements of type T in 16 bytes.
template <typename T>
constexpr int WIDE = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
__device__ __forceinline__ Vec<T, N> load(const T* p) {
    return *reinterpret_cast<const Vec<T, N>*>(p);
}

template <int N, typename T>
__device__ __forceinline__ void store(T* p, const Vec<T, N>& v) {
    *reinterpret_cast<Vec<T, N>*>(p) = v;
}
