// GELU (Hendrycks and Gimpel, 2016) of one number, in both forms: value and slope.
//
//   tanh form   y = x s, s = 1 / (1 + e), e = exp(-2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)     (1 + tanh u = 2 s)
//               y' = s (1 + x (1 - s) 2 u'), where 1 - s = e s does not cancel
//   erf form    y = x P, P = (1 + erf(x / sqrt 2)) / 2, y' = P + x exp(-x^2 / 2) / sqrt(2 pi)
//
// The functions are the device's fast ones where the result is rounded to bf16 (FAST), the exact ones in f32.
#pragma once
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
