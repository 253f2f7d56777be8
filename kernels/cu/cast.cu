// Gradients on their way between ranks: f32 to bf16 and back.
//
//   narrow_bf16   y[n] = round(x[n])   x f32, y bf16
//   widen_bf16    y[n] = x[n]          x bf16, y f32
//
// Nothing is saved. Bound by memory: 6 n bytes, each touched once. A thread moves 8 elements: two accesses of 16 bytes of f32
// and one of bf16. The f32 side is any range of a table: up to the first element at which both sides are aligned, and after the
// last whole vector, single elements are moved; where no such element exists, all are.
#include "common/vector.cuh"

namespace {

constexpr int N = WIDE<bf16>;
// Times N elements that a thread loads before it stores the first.
constexpr int IN_FLIGHT = 2;
using Size = unsigned long long;

// N elements, as they are loaded.
template <typename X>
struct Loaded;
template <>
struct Loaded<float> {
    Vec<float, 4> low, high;
};
template <>
struct Loaded<bf16> {
    Vec<bf16, N> all;
};

__device__ __forceinline__ Loaded<float> take(const float* x) { return {load<4>(x), load<4>(x + 4)}; }
__device__ __forceinline__ Loaded<bf16> take(const bf16* x) { return {load<N>(x)}; }

__device__ __forceinline__ void put(bf16* y, const Loaded<float>& x) {
    float all[N];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        all[i] = x.low.at[i];
        all[i + 4] = x.high.at[i];
    }
    store(y, narrowed<bf16>(all));
}

__device__ __forceinline__ void put(float* y, const Loaded<bf16>& x) {
    Vec<float, 4> low, high;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        low.at[i] = widen(x.all.at[i]);
        high.at[i] = widen(x.all.at[i + 4]);
    }
    store(y, low);
    store(y + 4, high);
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
    for (Size i = first; i < vectors; i += IN_FLIGHT * step) {
        Loaded<X> loaded[IN_FLIGHT];
#pragma unroll
        for (int turn = 0; turn < IN_FLIGHT; turn++) {
            if (i + turn * step < vectors) loaded[turn] = take(x + head + (i + turn * step) * N);
        }
#pragma unroll
        for (int turn = 0; turn < IN_FLIGHT; turn++) {
            if (i + turn * step < vectors) put(y + head + (i + turn * step) * N, loaded[turn]);
        }
    }
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
