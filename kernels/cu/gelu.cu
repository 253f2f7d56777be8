// GELU in both forms (common/gelu.cuh), with the bias gradient of the linear layer before it, and the pooler's tanh.
//
//   backward    dx = dy y' in place of dy [rows, cols], dbias = sum over rows of dx (common/columns.cuh)
//
// Saved for backward: x, the linear layer's output.
//
// Bound by memory: forward moves 2 N sizeof(T) bytes, backward 3 N sizeof(T).
#include "common/columns.cuh"
#include "common/gelu.cuh"

// Vectors of each operand that a thread has in flight.
constexpr int IN_FLIGHT = 4;
constexpr int MAP_THREADS = 256;

// out = f(a, b), or f(a, .) without b; out may be a. Every block takes MAP_THREADS * IN_FLIGHT vectors, the first one the
// elements after the last vector, too.
template <int W, bool BINARY, typename T, typename F>
__device__ __forceinline__ void map(T* out, const T* a, const T* b, size_t n, F f) {
    const size_t vectors = n / W, first = static_cast<size_t>(blockIdx.x) * (MAP_THREADS * IN_FLIGHT) + threadIdx.x;
    Vec<T, W> x[IN_FLIGHT], y[IN_FLIGHT];
#pragma unroll
    for (int v = 0; v < IN_FLIGHT; v++) {
        const size_t at = first + v * MAP_THREADS;
        if (at >= vectors) continue;
        x[v] = load<W>(a + at * W);
        if (BINARY) y[v] = load<W>(b + at * W);
    }
#pragma unroll
    for (int v = 0; v < IN_FLIGHT; v++) {
        const size_t at = first + v * MAP_THREADS;
        if (at >= vectors) continue;
        float result[W];
#pragma unroll
        for (int i = 0; i < W; i++) result[i] = f(widen(x[v].at[i]), BINARY ? widen(y[v].at[i]) : 0.0f);
        store(out + at * W, narrowed<T>(result));
    }
    const size_t rest = vectors * W + threadIdx.x;
    if (blockIdx.x == 0 && rest < n) out[rest] = narrow<T>(f(widen(a[rest]), BINARY ? widen(b[rest]) : 0.0f));
}

template <typename T, int W, typename Gelu>
struct GeluColumns {
    static constexpr int WIDTH = W, TURNS = 2;
    struct Raw {
        Vec<T, W> dy, x;
    };
    T* dy;
    const T* x;

    __device__ __forceinline__ bool takes(size_t) const { return true; }
    __device__ __forceinline__ Raw load(size_t at) const { return {::load<W>(dy + at), ::load<W>(x + at)}; }
    __device__ __forceinline__ void finish(size_t at, const Raw& raw, float (&out)[W]) const {
#pragma unroll
        for (int i = 0; i < W; i++) out[i] = widen(raw.dy.at[i]) * Gelu::slope(widen(raw.x.at[i]));
        store(dy + at, narrowed<T>(out));
    }
};

#define GELU(T, suffix, name, W, form, Form)                                                                              \
    extern "C" __global__ void __launch_bounds__(MAP_THREADS)                                                             \
        gelu_##form##_forward_##name##suffix(T* y, const T* x, unsigned long long n) {                                    \
        map<W, false>(y, x, static_cast<const T*>(nullptr), n, [](float x, float) { return Form::value(x); });            \
    }                                                                                                                     \
    EXPORT(gelu_##form##_forward_##name##suffix)                                                                          \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS, 4)                                                          \
        gelu_##form##_backward_##name##suffix(float* partials, T* dy, const T* x, unsigned rows, unsigned cols, unsigned chunk) { \
        column_sums(partials, rows, cols, chunk, GeluColumns<T, W, Form>{dy, x});                                         \
    }                                                                                                                     \
    EXPORT(gelu_##form##_backward_##name##suffix)

#define TANH(T, suffix, name, W)                                                                                          \
    extern "C" __global__ void __launch_bounds__(MAP_THREADS) tanh_forward_##name##suffix(T* y, unsigned long long n) {   \
        map<W, false>(y, y, static_cast<const T*>(nullptr), n, [](float y, float) { return tanhf(y); });                  \
    }                                                                                                                     \
    EXPORT(tanh_forward_##name##suffix)                                                                                   \
    extern "C" __global__ void __launch_bounds__(MAP_THREADS)                                                             \
        tanh_backward_##name##suffix(T* dy, const T* y, unsigned long long n) {                                           \
        map<W, true>(dy, dy, y, n, [](float dy, float y) { return dy * fmaf(-y, y, 1.0f); });                             \
    }                                                                                                                     \
    EXPORT(tanh_backward_##name##suffix)

GELU(float, f32, , WIDE<float>, tanh, GeluTanh<false>)
GELU(float, f32, any_, 1, tanh, GeluTanh<false>)
GELU(float, f32, , WIDE<float>, erf, GeluErf<false>)
GELU(float, f32, any_, 1, erf, GeluErf<false>)
GELU(bf16, bf16, , WIDE<bf16>, tanh, GeluTanh<true>)
GELU(bf16, bf16, any_, 1, tanh, GeluTanh<true>)
GELU(bf16, bf16, , WIDE<bf16>, erf, GeluErf<true>)
GELU(bf16, bf16, any_, 1, erf, GeluErf<true>)
TANH(float, f32, , WIDE<float>)
TANH(float, f32, any_, 1)
TANH(bf16, bf16, , WIDE<bf16>)
TANH(bf16, bf16, any_, 1)
