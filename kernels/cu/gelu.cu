// GELU (Hendrycks and Gimpel, 2016) in both forms, with the bias gradient of the linear layer before it, and the pooler's tanh.
//
//   tanh form   y = x s, s = 1 / (1 + e), e = exp(-2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)     (1 + tanh u = 2 s)
//               y' = s (1 + x (1 - s) 2 u'), where 1 - s = e s does not cancel
//   erf form    y = x P, P = (1 + erf(x / sqrt 2)) / 2, y' = P + x exp(-x^2 / 2) / sqrt(2 pi)
//   backward    dx = dy y' in place of dy [rows, cols], dbias = sum over rows of dx (common/columns.cuh)
//
// Saved for backward: x, the linear layer's output. The functions are the device's fast ones where the result is rounded
// to bf16 (FAST), the exact ones in f32.
//
// Bound by memory: forward moves 2 N sizeof(T) bytes, backward 3 N sizeof(T).
#include "common/columns.cuh"
#include "common/fast.cuh"

constexpr float ROOT_2_PI = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;
constexpr float ROOT_HALF = 0.7071067811865476f;

constexpr float LOG2_E = 1.4426950408889634f;

template <bool FAST>
__device__ __forceinline__ float reciprocal(float x) {
    if constexpr (FAST) return fast_reciprocal(x);
    return 1.0f / x;
}

// exp(-2 u), at most 2^115: infinity would give 0 times infinity. A NaN becomes a number here and a NaN again when x is
// multiplied.
template <bool FAST>
__device__ __forceinline__ float tanh_exponential(float x) {
    constexpr float unit = FAST ? LOG2_E : 1.0f, linear = -2.0f * ROOT_2_PI * unit;
    const float exponent = fminf(x * fmaf(linear * CUBIC, x * x, linear), 80.0f * unit);
    if constexpr (FAST) return fast_exp2(exponent);
    return expf(exponent);
}

// exp(-x^2 / 2)
template <bool FAST>
__device__ __forceinline__ float bell(float x) {
    if constexpr (FAST) return fast_exp2(-0.5f * LOG2_E * x * x);
    return expf(-0.5f * x * x);
}

template <bool FAST>
struct GeluTanh {
    static __device__ __forceinline__ float value(float x) {
        const float below = 1.0f + tanh_exponential<FAST>(x);
        if constexpr (FAST) return x * fast_reciprocal(below);
        return x / below;
    }

    static __device__ __forceinline__ float slope(float x) {
        const float e = tanh_exponential<FAST>(x), s = reciprocal<FAST>(1.0f + e);
        const float twice_du = fmaf(6.0f * ROOT_2_PI * CUBIC, x * x, 2.0f * ROOT_2_PI);
        return s * fmaf(x * twice_du, e * s, 1.0f);
    }
};

// P, given e = bell(x). The fast one is formula 7.1.26 of Abramowitz and Stegun: erfc(z) = (polynomial of t) exp(-z^2),
// t = 1 / (1 + p z), off by at most 1.5e-7.
template <bool FAST>
__device__ __forceinline__ float normal_cdf(float x, float e) {
    if constexpr (FAST) {
        const float t = fast_reciprocal(fmaf(0.3275911f * ROOT_HALF, fabsf(x), 1.0f));
        float erfc = fmaf(1.061405429f, t, -1.453152027f);
        erfc = fmaf(erfc, t, 1.421413741f);
        erfc = fmaf(erfc, t, -0.284496736f);
        erfc = fmaf(erfc, t, 0.254829592f);
        const float tail = 0.5f * erfc * t * e;
        return x > 0.0f ? 1.0f - tail : tail;
    }
    return fmaf(0.5f, erff(x * ROOT_HALF), 0.5f);
}

template <bool FAST>
struct GeluErf {
    static __device__ __forceinline__ float value(float x) {
        return x * normal_cdf<FAST>(x, FAST ? bell<FAST>(x) : 0.0f);
    }

    static __device__ __forceinline__ float slope(float x) {
        const float e = bell<FAST>(x);
        return fmaf(x, 0.5f * ROOT_2_PI * e, normal_cdf<FAST>(x, e));
    }
};

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
