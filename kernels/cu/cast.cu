// Gradients on their way between ranks: f32 to bf16 and back.
//
//   narrow_bf16   y[n] = round(x[n])   x f32, y bf16
//   widen_bf16    y[n] = x[n]          x bf16, y f32
//
// Nothing is saved. Bound by memory: 6 n bytes, each touched once. A thread moves 8 elements: two accesses of 16 bytes of f32
// and one of bf16. The f32 side is any range of a table: up to the first element at which both sides are aligned, and after the
// last whole vector, single elements are moved; where no such element exists, all are.
#include "common/base.cuh"

namespace {

constexpr int N = WIDE<bf16>;
using Size = unsigned long long;

__device__ __forceinline__ void move(bf16* y, const float* x) {
    const Vec<float, 4> a = load<4>(x), b = load<4>(x + 4);
    Vec<bf16, N> out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.at[i] = narrow<bf16>(a.at[i]);
        out.at[i + 4] = narrow<bf16>(b.at[i]);
    }
    store(y, out);
}

__device__ __forceinline__ void move(float* y, const bf16* x) {
    const Vec<bf16, N> in = load<N>(x);
    Vec<float, 4> a, b;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a.at[i] = widen(in.at[i]);
        b.at[i] = widen(in.at[i + 4]);
    }
    store(y, a);
    store(y + 4, b);
}

__device__ __forceinline__ void move_one(bf16* y, const float* x) { *y = narrow<bf16>(*x); }
__device__ __forceinline__ void move_one(float* y, const bf16* x) { *y = widen(*x); }

// Elements before the vectors: those up to an address of the f32 side that is a multiple of 32 bytes, if the bf16 side is
// aligned to 16 there; else all.
__device__ __forceinline__ Size head_of(const float* full, const bf16* half, Size n) {
    const Size head = (8 - reinterpret_cast<Size>(full) / 4 % 8) % 8;
    return head < n && reinterpret_cast<Size>(half + head) % 16 == 0 ? head : n;
}

template <typename Y, typename X>
__device__ __forceinline__ void move_all(Y* y, const X* x, Size n, Size head) {
    const Size vectors = (n - head) / N, tail = head + vectors * N;
    const Size first = static_cast<Size>(blockIdx.x) * blockDim.x + threadIdx.x, step = static_cast<Size>(gridDim.x) * blockDim.x;
    for (Size i = first; i < vectors; i += step) move(y + head + i * N, x + head + i * N);
    for (Size i = first; i < head; i += step) move_one(y + i, x + i);
    for (Size i = tail + first; i < n; i += step) move_one(y + i, x + i);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) narrow_bf16(bf16* __restrict__ y, const float* __restrict__ x, unsigned long long n) {
    move_all(y, x, n, head_of(x, y, n));
}
EXPORT(narrow_bf16)

extern "C" __global__ void __launch_bounds__(256) widen_bf16(float* __restrict__ y, const bf16* __restrict__ x, unsigned long long n) {
    move_all(y, x, n, head_of(y, x, n));
}
EXPORT(widen_bf16)
