// Gradient norm, clipping, AdamW (Loshchilov and Hutter, 2019) and LAMB (You et al., 2020) over flat arrays of n parameters.
//
//   g' = g min(1, max_norm / (norm + clip_eps))
//   m  = beta1 m + (1 - beta1) g',   v = beta2 v + (1 - beta2) g'^2
//   d  = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//   AdamW:  w = (1 - lr wd) w - lr d
//   LAMB:   u = d + wd w,  w = w - lr (|w| / |u|) u     with the norms of whole tensors
//
// Norm and number of updates are on the device: one thread turns them into the step's constants first, so that no host
// waits, and of two steps only this kernel's arguments differ. Where the norm is not finite, nothing is changed.
//
// A block takes what lies of one tensor in one stretch of STRETCH elements (a Piece); stretches begin at multiples of
// STRETCH, wherever tensors and shards begin, and every sum is taken in an order that depends on its piece alone. So sums
// do not depend on how the table is divided among ranks. Squares are summed in f64.
//
// Bound by memory, bytes a parameter (w16 is the rounded copy of bf16 training):
//   square_sums    4   reads g
//   adamw         30   reads g m v w, writes m v w w16
//   lamb_moments  24   reads g m v w, writes m v
//   lamb_apply    18   reads m v w, writes w w16
// LAMB takes 42 where AdamW takes 30, because the norms of whole tensors stand between its halves: the second reads m, v and w
// again. To keep u for it instead costs as much, 4 written and 4 read for the 8 of m and v.
// Beside them 2 (square_sums) to 4 (lamb_moments) operations in f64, which take a tenth of that time on GPUs with fast f64;
// where f64 has a 64th of the speed of f32 they are the bound.
#include "common/base.cuh"
#include "common/reduce.cuh"

// One step's constants, rounded once from f64.
struct StepConstants {
    double lr;
    float clip, beta1, one_minus_beta1, beta2, one_minus_beta2;
    float correction1;  // 1 / (1 - beta1^t)
    float correction2;  // 1 / sqrt(1 - beta2^t)
    float eps;
    float rate;         // lr
    float keep;         // 1 - lr wd
    float decay;        // wd
    unsigned skip;
};

// What of one tensor lies in one stretch: elements `start` to `start + len` of the table.
struct Piece {
    unsigned long long start;
    unsigned len;
    unsigned tensor;
    unsigned sums;  // number of its pair of sums
    unsigned decays;
};

// A tensor's pairs of sums, and whether it takes the trust ratio.
struct TensorSums {
    unsigned first, count, decays;
};

constexpr int THREADS = 256;
constexpr int LANES = 4;  // floats in 16 bytes

// Elements `begin` to `end`, N at a time, those of U steps loaded before the first is used.
template <int N, int U, class Step>
__device__ __forceinline__ void sweep(unsigned long long begin, unsigned long long end, Step& step) {
    for (unsigned long long at = begin + threadIdx.x * N; at < end; at += THREADS * N * U) {
        typename Step::template Loaded<N> x[U];
#pragma unroll
        for (int u = 0; u < U; u++)
            if (at + THREADS * N * u < end) x[u] = step.template take<N>(at + THREADS * N * u);
#pragma unroll
        for (int u = 0; u < U; u++)
            if (at + THREADS * N * u < end) step.template use<N>(at + THREADS * N * u, x[u]);
    }
}

// The same by 16 bytes where `aligned` says that all arrays can at multiples of LANES, and the ends one by one.
template <int U, class Step>
__device__ __forceinline__ void sweep(unsigned long long begin, unsigned long long end, unsigned aligned, Step& step) {
    const unsigned long long up = (begin + LANES - 1) / LANES * LANES, down = end / LANES * LANES;
    const unsigned long long first = aligned != 0 && up < end ? up : end, last = down > first ? down : first;
    sweep<1, 1>(begin, first, step);
    sweep<LANES, U>(first, last, step);
    sweep<1, 1>(last, end, step);
}

struct Squares {
    const float* x;
    double sum;

    template <int N>
    using Loaded = Vec<float, N>;
    template <int N>
    __device__ __forceinline__ Vec<float, N> take(unsigned long long i) const { return load<N>(x + i); }
    template <int N>
    __device__ __forceinline__ void use(unsigned long long, const Vec<float, N>& at) {
#pragma unroll
        for (int j = 0; j < N; j++) sum = fma(static_cast<double>(at.at[j]), static_cast<double>(at.at[j]), sum);
    }
};

// A block for each `stretch` elements of x [len].
extern "C" __global__ void __launch_bounds__(THREADS)
    square_sums_f32(double* sums, const float* x, unsigned long long len, unsigned stretch, unsigned aligned) {
    SHARED(double, partials, [WARP]);
    const unsigned long long begin = static_cast<unsigned long long>(blockIdx.x) * stretch;
    Squares squares = {x, 0.0};
    sweep<4>(begin, min(begin + stretch, len), aligned, squares);
    const double sum = block_sum(squares.sum, partials);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
EXPORT(square_sums_f32)

// One block.
extern "C" __global__ void __launch_bounds__(1024) root_of_sum_f32(float* norm, const double* sums, unsigned count) {
    SHARED(double, partials, [WARP]);
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum, partials);
    if (threadIdx.x == 0) norm[0] = static_cast<float>(sqrt(sum));
}
EXPORT(root_of_sum_f32)

struct Scale {
    float* x;
    float factor;

    template <int N>
    using Loaded = Vec<float, N>;
    template <int N>
    __device__ __forceinline__ Vec<float, N> take(unsigned long long i) const { return load<N>(x + i); }
    template <int N>
    __device__ __forceinline__ void use(unsigned long long i, Vec<float, N> at) {
#pragma unroll
        for (int j = 0; j < N; j++) at.at[j] *= factor;
        store<N>(x + i, at);
    }
};

// A block for each `stretch` elements of x [len].
extern "C" __global__ void __launch_bounds__(THREADS)
    clip_f32(float* x, const float* norm, double max_norm, unsigned long long len, unsigned stretch, unsigned aligned) {
    const double size = norm[0];
    if (!(isfinite(size) && size > max_norm)) return;
    const unsigned long long begin = static_cast<unsigned long long>(blockIdx.x) * stretch;
    Scale scale = {x, static_cast<float>(max_norm / size)};
    sweep<4>(begin, min(begin + stretch, len), aligned, scale);
}
EXPORT(clip_f32)

// One thread. With `counts` the update is counted.
extern "C" __global__ void optimizer_constants_f32(StepConstants* constants, const float* norm, unsigned* updates, double lr, double beta1,
                                                   double beta2, double eps, double weight_decay, double max_norm, double clip_eps,
                                                   unsigned counts) {
    const double size = norm[0];
    const bool skip = !isfinite(size);
    const double t = static_cast<double>(updates[0]) + 1.0;
    StepConstants c;
    c.lr = lr;
    c.clip = static_cast<float>(fmin(max_norm / (size + clip_eps), 1.0));
    c.beta1 = static_cast<float>(beta1);
    c.one_minus_beta1 = static_cast<float>(1.0 - beta1);
    c.beta2 = static_cast<float>(beta2);
    c.one_minus_beta2 = static_cast<float>(1.0 - beta2);
    c.correction1 = static_cast<float>(1.0 / (1.0 - pow(beta1, t)));
    c.correction2 = static_cast<float>(1.0 / sqrt(1.0 - pow(beta2, t)));
    c.eps = static_cast<float>(eps);
    c.rate = static_cast<float>(lr);
    c.keep = static_cast<float>(1.0 - lr * weight_decay);
    c.decay = static_cast<float>(weight_decay);
    c.skip = skip ? 1 : 0;
    *constants = c;
    if (counts != 0 && !skip) updates[0] += 1;
}
EXPORT(optimizer_constants_f32)

// Products and sums are written as the device shall round them, so that an element ends the same whether it is reached by
// 4 bytes or by 16.
__device__ __forceinline__ void moments(const StepConstants& c, float g, float& m, float& v) {
    g = __fmul_rn(g, c.clip);
    m = fmaf(c.beta1, m, __fmul_rn(c.one_minus_beta1, g));
    v = fmaf(c.beta2, v, __fmul_rn(c.one_minus_beta2, __fmul_rn(g, g)));
}

__device__ __forceinline__ float direction(const StepConstants& c, float m, float v) {
    return __fmul_rn(m, c.correction1) / fmaf(sqrtf(v), c.correction2, c.eps);
}

// w16 is null, and T is float, where there is no rounded copy.
template <typename T, int N>
__device__ __forceinline__ void store_weights(float* w, T* w16, unsigned long long i, const Vec<float, N>& x) {
    store<N>(w + i, x);
    if constexpr (sizeof(T) < sizeof(float)) {
        Vec<T, N> y;
#pragma unroll
        for (int j = 0; j < N; j++) y.at[j] = narrow<T>(x.at[j]);
        store<N>(w16 + i, y);
    }
}

template <int N>
struct Parameters {
    Vec<float, N> w, g, m, v;
};

// m and v begin at element `first` of the table, w, w16 and g at its start.
template <typename T>
struct AdamW {
    float* w;
    T* w16;
    const float* g;
    float *m, *v;
    unsigned long long first;
    float keep;
    StepConstants c;

    template <int N>
    using Loaded = Parameters<N>;
    template <int N>
    __device__ __forceinline__ Parameters<N> take(unsigned long long i) const {
        return {load<N>(w + i), load<N>(g + i), load<N>(m + (i - first)), load<N>(v + (i - first))};
    }
    template <int N>
    __device__ __forceinline__ void use(unsigned long long i, Parameters<N> x) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            moments(c, x.g.at[j], x.m.at[j], x.v.at[j]);
            const float down = __fmul_rn(c.rate, direction(c, x.m.at[j], x.v.at[j]));
            x.w.at[j] = fmaf(x.w.at[j], keep, -down);
        }
        store<N>(m + (i - first), x.m);
        store<N>(v + (i - first), x.v);
        store_weights<T, N>(w, w16, i, x.w);
    }
};

struct LambMoments {
    const float *w, *g;
    float *m, *v;
    unsigned long long first;
    float decay;
    StepConstants c;
    double w_sum, u_sum;

    template <int N>
    using Loaded = Parameters<N>;
    template <int N>
    __device__ __forceinline__ Parameters<N> take(unsigned long long i) const {
        return {load<N>(w + i), load<N>(g + i), load<N>(m + (i - first)), load<N>(v + (i - first))};
    }
    template <int N>
    __device__ __forceinline__ void use(unsigned long long i, Parameters<N> x) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            moments(c, x.g.at[j], x.m.at[j], x.v.at[j]);
            const double weight = x.w.at[j], u = fmaf(decay, x.w.at[j], direction(c, x.m.at[j], x.v.at[j]));
            w_sum = fma(weight, weight, w_sum);
            u_sum = fma(u, u, u_sum);
        }
        store<N>(m + (i - first), x.m);
        store<N>(v + (i - first), x.v);
    }
};

template <int N>
struct Moments {
    Vec<float, N> w, m, v;
};

template <typename T>
struct LambApply {
    float* w;
    T* w16;
    const float *m, *v;
    unsigned long long first;
    float decay, rate;
    StepConstants c;

    template <int N>
    using Loaded = Moments<N>;
    template <int N>
    __device__ __forceinline__ Moments<N> take(unsigned long long i) const {
        return {load<N>(w + i), load<N>(m + (i - first)), load<N>(v + (i - first))};
    }
    template <int N>
    __device__ __forceinline__ void use(unsigned long long i, Moments<N> x) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float u = fmaf(decay, x.w.at[j], direction(c, x.m.at[j], x.v.at[j]));
            x.w.at[j] = fmaf(-rate, u, x.w.at[j]);
        }
        store_weights<T, N>(w, w16, i, x.w);
    }
};

#define ADAMW(T, name)                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                     \
        adamw_##name(float* w, T* w16, const float* g, float* m, float* v, const StepConstants* constants, const Piece* pieces, \
                     unsigned long long first, unsigned aligned) {                                                            \
        const Piece piece = pieces[blockIdx.x];                                                                               \
        const StepConstants c = *constants;                                                                                   \
        if (c.skip != 0) return;                                                                                              \
        AdamW<T> step = {w, w16, g, m, v, first, piece.decays != 0 ? c.keep : 1.0f, c};                                       \
        sweep<2>(piece.start, piece.start + piece.len, aligned, step);                                                        \
    }                                                                                                                         \
    EXPORT(adamw_##name)
ADAMW(float, f32)
ADAMW(bf16, bf16)

// sums: a pair for each stretch of each tensor, squares of w and of u.
extern "C" __global__ void __launch_bounds__(THREADS)
    lamb_moments_f32(double* sums, const float* w, const float* g, float* m, float* v, const StepConstants* constants,
                     const Piece* pieces, unsigned long long first, unsigned aligned) {
    SHARED(double, partials, [WARP]);
    const Piece piece = pieces[blockIdx.x];
    const StepConstants c = *constants;
    if (c.skip != 0) return;
    LambMoments step = {w, g, m, v, first, piece.decays != 0 ? c.decay : 0.0f, c, 0.0, 0.0};
    sweep<2>(piece.start, piece.start + piece.len, aligned, step);
    const double w_sum = block_sum(step.w_sum, partials), u_sum = block_sum(step.u_sum, partials);
    if (threadIdx.x == 0) {
        sums[2 * piece.sums] = w_sum;
        sums[2 * piece.sums + 1] = u_sum;
    }
}
EXPORT(lamb_moments_f32)

// A block a tensor: rates[tensor] = lr |w| / |u|.
extern "C" __global__ void __launch_bounds__(THREADS)
    lamb_rates_f32(float* rates, const double* sums, const StepConstants* constants, const TensorSums* tensors) {
    SHARED(double, partials, [WARP]);
    const TensorSums tensor = tensors[blockIdx.x];
    double w_sum = 0.0, u_sum = 0.0;
    for (unsigned i = threadIdx.x; i < tensor.count; i += blockDim.x) {
        w_sum += sums[2 * (tensor.first + i)];
        u_sum += sums[2 * (tensor.first + i) + 1];
    }
    const double w_norm = sqrt(block_sum(w_sum, partials)), u_norm = sqrt(block_sum(u_sum, partials));
    const double ratio = tensor.decays != 0 && w_norm > 0.0 && u_norm > 0.0 ? w_norm / u_norm : 1.0;
    if (threadIdx.x == 0) rates[blockIdx.x] = static_cast<float>(constants->lr * ratio);
}
EXPORT(lamb_rates_f32)

#define LAMB_APPLY(T, name)                                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                                 \
        lamb_apply_##name(float* w, T* w16, const float* m, const float* v, const float* rates,                           \
                          const StepConstants* constants, const Piece* pieces, unsigned long long first, unsigned aligned) { \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const StepConstants c = *constants;                                                                               \
        if (c.skip != 0) return;                                                                                          \
        LambApply<T> step = {w, w16, m, v, first, piece.decays != 0 ? c.decay : 0.0f, rates[piece.tensor], c};            \
        sweep<2>(piece.start, piece.start + piece.len, aligned, step);                                                    \
    }                                                                                                                     \
    EXPORT(lamb_apply_##name)
LAMB_APPLY(float, f32)
LAMB_APPLY(bf16, bf16)
