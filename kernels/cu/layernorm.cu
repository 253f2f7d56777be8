// Dropout, residual and layer normalization (Ba et al., 2016); the math of the normalization is in common/layernorm.cuh.
//
//   forward    z = dropout(x) + residual, y = layernorm(z)                x, residual, z, y [R, H]
//   backward   dz as there, dx = dropout(dz), dbias = sum over rows of dx
//
// Saved for backward: z (in place of x), mean and rstd [R]; the dropout's mask is drawn again.
//
// Bound by memory: forward reads x and residual and writes z and y, 4 R H sizeof(T) bytes (3 without a residual); backward
// reads dy and z and writes dz and dx, 4 R H sizeof(T), and beside them the blocks' column sums, 2 * 3 * blocks * H * 4.
#include "common/layernorm.cuh"

// The arguments of forward; without RESIDUAL the residual is not read.
template <typename T>
struct LayerNormSum {
    T* __restrict__ y;
    T* z;
    const T* __restrict__ residual;
    float* __restrict__ mean;
    float* __restrict__ rstd;
    const float* __restrict__ gamma;
    const float* __restrict__ beta;
    float eps;
    unsigned rows, cols;
    Dropout dropout;
};

// A holder's row of at most VECS vectors a thread.
template <typename T, int VECS, bool DROPS, bool RESIDUAL, typename Holder>
__device__ __forceinline__ void layernorm_forward_row(const LayerNormSum<T>& a, const Holder& holder) {
    constexpr int W = WIDE<T>;
    const auto column = [&](int v) { return holder.column(v); };
    const unsigned row = blockIdx.x * holder.rows_of_block() + holder.in_block();
    if (row >= a.rows) return;
    const size_t at = static_cast<size_t>(row) * a.cols;
    // Threads beyond the row load its first vector again: no branch, so that all loads go out before the first arrives.
    Vec<T, W> x[VECS], skip[VECS];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        const unsigned from = column(v) < a.cols ? column(v) : 0;
        x[v] = load<W>(a.z + at + from);
        if constexpr (RESIDUAL) skip[v] = load<W>(a.residual + at + from);
    }
    MaskBytes<T> bytes[VECS];
    if constexpr (DROPS) row_bytes(bytes, a.dropout, a.dropout.row_keys[row], column);
    float sum[VECS][W];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            sum[v][i] = widen(x[v].at[i]);
            if constexpr (DROPS) sum[v][i] = masked(a.dropout, bytes[v], i, sum[v][i]);
            if constexpr (RESIDUAL) sum[v][i] += widen(skip[v].at[i]);
        }
        if (column(v) < a.cols) store(a.z + at + column(v), narrowed<T>(sum[v]));
    }
    const Statistics statistics = row_statistics<T>(holder, sum, a.cols, a.eps);
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (column(v) >= a.cols) continue;
        normalize(sum[v], statistics, a.gamma, a.beta, column(v));
        store(a.y + at + column(v), narrowed<T>(sum[v]));
    }
    if (holder.is_first()) {
        a.mean[row] = statistics.mean;
        a.rstd[row] = statistics.rstd;
    }
}

template <typename T, int VECS, typename Holder>
__device__ __forceinline__ void layernorm_forward(const LayerNormSum<T>& a, const Holder& holder) {
    if (a.dropout.threshold && a.residual) {
        layernorm_forward_row<T, VECS, true, true>(a, holder);
    } else if (a.dropout.threshold) {
        layernorm_forward_row<T, VECS, true, false>(a, holder);
    } else if (a.residual) {
        layernorm_forward_row<T, VECS, false, true>(a, holder);
    } else {
        layernorm_forward_row<T, VECS, false, false>(a, holder);
    }
}

template <typename T>
__device__ __forceinline__ void layernorm_forward_any(T* __restrict__ y, T* z, const T* __restrict__ residual, float* __restrict__ mean,
                                                      float* __restrict__ rstd, const float* __restrict__ gamma,
                                                      const float* __restrict__ beta, float eps, unsigned cols, const Dropout& dropout) {
    const size_t row = blockIdx.x, at = row * cols;
    const unsigned key = dropout.threshold ? dropout.row_keys[row] : 0;
    const auto sum = [&](unsigned c) {
        float x = widen(z[at + c]);
        if (dropout.threshold) x = masked_column(dropout, key, c, x);
        if (residual) x += widen(residual[at + c]);
        z[at + c] = narrow<T>(x);
        return x;
    };
    const Statistics statistics = forward_any(gamma, beta, eps, cols, sum, [&](unsigned c, float out) { y[at + c] = narrow<T>(out); });
    if (threadIdx.x == 0) {
        mean[row] = statistics.mean;
        rstd[row] = statistics.rstd;
    }
}

#define FORWARD(T, suffix, cols)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                         \
        layernorm_forward_##cols##_##suffix(T* y, T* z, const T* residual, float* mean, float* rstd, const float* gamma,      \
                                            const float* beta, float eps, unsigned rows, unsigned width, Dropout dropout) {   \
        layernorm_forward<T, cols / WARP / WIDE<T>>(                                                                          \
            LayerNormSum<T>{y, z, residual, mean, rstd, gamma, beta, eps, rows, width, dropout}, WarpRow<T>{});               \
    }                                                                                                                         \
    EXPORT(layernorm_forward_##cols##_##suffix)

// `resident` blocks fit a multiprocessor.
#define BACKWARD(T, suffix, cols, resident)                                                                                   \
    extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, resident)                                                  \
        layernorm_backward_##cols##_##suffix(T* dz, T* dx, const T* dy, const T* z, const float* mean, const float* rstd,     \
                                             const float* gamma, float* partials, unsigned rows, unsigned width,              \
                                             Dropout dropout) {                                                               \
        layernorm_backward<T, cols / WARP / WIDE<T>, false>(                                                                  \
            LayerNormGradient<T>{dz, dx, dy, z, mean, rstd, gamma, partials, rows, width, dropout}, WarpRow<T>{});            \
    }                                                                                                                         \
    EXPORT(layernorm_backward_##cols##_##suffix)

#define LAYERNORM(T, suffix)                                                                                                  \
    FORWARD(T, suffix, 256)                                                                                                   \
    FORWARD(T, suffix, 512)                                                                                                   \
    FORWARD(T, suffix, 768)                                                                                                   \
    FORWARD(T, suffix, 1024)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WIDE_FORWARD_THREADS)                                                        \
        layernorm_forward_wide_##suffix(T* y, T* z, const T* residual, float* mean, float* rstd, const float* gamma,          \
                                        const float* beta, float eps, unsigned rows, unsigned width, Dropout dropout) {       \
        SHARED(float, meeting, [4 * WARP]);                                                                                   \
        layernorm_forward<T, WIDE_FORWARD_VECS<T>>(                                                                           \
            LayerNormSum<T>{y, z, residual, mean, rstd, gamma, beta, eps, rows, width, dropout}, BlockRow<T>{meeting, 0});    \
    }                                                                                                                         \
    EXPORT(layernorm_forward_wide_##suffix)                                                                                   \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                 \
        layernorm_forward_any_##suffix(T* y, T* z, const T* residual, float* mean, float* rstd, const float* gamma,           \
                                       const float* beta, float eps, unsigned, unsigned cols, Dropout dropout) {              \
        layernorm_forward_any<T>(y, z, residual, mean, rstd, gamma, beta, eps, cols, dropout);                                \
    }                                                                                                                         \
    EXPORT(layernorm_forward_any_##suffix)                                                                                    \
    BACKWARD(T, suffix, 256, 2)                                                                                               \
    BACKWARD(T, suffix, 512, 1)                                                                                               \
    BACKWARD(T, suffix, 768, 1)                                                                                               \
    BACKWARD(T, suffix, 1024, 1)                                                                                              \
    extern "C" __global__ void __launch_bounds__(WIDE_BACKWARD_THREADS)                                                       \
        layernorm_backward_wide_##suffix(T* dz, T* dx, const T* dy, const T* z, const float* mean, const float* rstd,         \
                                         const float* gamma, float* partials, unsigned rows, unsigned width,                  \
                                         Dropout dropout) {                                                                   \
        SHARED(float, meeting, [4 * WARP]);                                                                                   \
        layernorm_backward<T, WIDE_BACKWARD_VECS<T>, false>(                                                                  \
            LayerNormGradient<T>{dz, dx, dy, z, mean, rstd, gamma, partials, rows, width, dropout},                           \
            BlockRow<T>{meeting, 0});                                                                                         \
    }                                                                                                                         \
    EXPORT(layernorm_backward_wide_##suffix)                                                                                  \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                 \
        layernorm_backward_any_##suffix(T* dz, T* dx, const T* dy, const T* z, const float* mean, const float* rstd,          \
                                        const float* gamma, float* partials, unsigned rows, unsigned cols, Dropout dropout) { \
        layernorm_backward_any<T, false>({dz, dx, dy, z, mean, rstd, gamma, partials, rows, cols, dropout});                  \
    }                                                                                                                         \
    EXPORT(layernorm_backward_any_##suffix)

LAYERNORM(float, f32)
LAYERNORM(bf16, bf16)
