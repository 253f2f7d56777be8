// Dropout, residual and layer normalization (Ba et al., 2016); the math of the normalization is in common/layernorm.cuh.
//
//   forward    z = dropout(x) + residual, y = layernorm(z)                x, residual, z, y [R, H]
//   backward   dz as there, dx = dropout(dz), dbias = sum over rows of dx
//
// Saved for backward: z (in place of x), mean and rstd [R]; the dropout's mask is drawn again.
//
// Bound by memory: forward reads x and residual and writes z and y, 4 R H sizeof(T) bytes; backward reads dy and z and writes
// dz and dx, 4 R H sizeof(T), and beside them the blocks' column sums, 2 * 3 * blocks * H * 4.
#include "common/layernorm.cuh"

// One warp a row of at most VECS vectors a lane.
template <typename T, int VECS>
__device__ __forceinline__ void layernorm_forward(T* __restrict__ y, T* z, const T* __restrict__ residual, float* __restrict__ mean,
                                                  float* __restrict__ rstd, const float* __restrict__ gamma, const float* __restrict__ beta,
                                                  float eps, unsigned rows, unsigned cols, const Dropout& dropout) {
    constexpr int W = WIDE<T>;
    const unsigned row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const size_t at = static_cast<size_t>(row) * cols;
    const unsigned key = dropout.threshold ? dropout.row_keys[row] : 0;
    // Lanes beyond the row load its first vector again, and without a residual x is loaded twice: no branch, so that all
    // loads go out before the first arrives.
    const T* other = residual ? residual : z;
    Vec<T, W> x[VECS], skip[VECS];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        const unsigned column = lane_column<T>(v) < cols ? lane_column<T>(v) : 0;
        x[v] = load<W>(z + at + column);
        skip[v] = load<W>(other + at + column);
    }
    MaskBytes<T> bytes[VECS];
    if (dropout.threshold) row_bytes(bytes, dropout, key);
    float sum[VECS][W];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            sum[v][i] = widen(x[v].at[i]);
            if (dropout.threshold) sum[v][i] = masked(dropout, bytes[v], i, sum[v][i]);
            if (residual) sum[v][i] += widen(skip[v].at[i]);
        }
        if (lane_column<T>(v) < cols) store(z + at + lane_column<T>(v), narrowed<T>(sum[v]));
    }
    const Statistics statistics = row_statistics<T>(sum, cols, eps);
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        const unsigned column = lane_column<T>(v);
        if (column >= cols) continue;
        normalize(sum[v], statistics, gamma, beta, column);
        store(y + at + column, narrowed<T>(sum[v]));
    }
    if (threadIdx.x % WARP == 0) {
        mean[row] = statistics.mean;
        rstd[row] = statistics.rstd;
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
        layernorm_forward<T, cols / WARP / WIDE<T>>(y, z, residual, mean, rstd, gamma, beta, eps, rows, width, dropout);      \
    }                                                                                                                         \
    EXPORT(layernorm_forward_##cols##_##suffix)

// `resident` blocks fit a multiprocessor.
#define BACKWARD(T, suffix, cols, resident)                                                                                   \
    extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, resident)                                                  \
        layernorm_backward_##cols##_##suffix(T* dz, T* dx, const T* dy, const T* z, const float* mean, const float* rstd,     \
                                             const float* gamma, float* partials, unsigned rows, unsigned width,              \
                                             Dropout dropout) {                                                               \
        layernorm_backward<T, cols / WARP / WIDE<T>, false>({dz, dx, dy, z, mean, rstd, gamma, partials, rows, width, dropout}); \
    }                                                                                                                         \
    EXPORT(layernorm_backward_##cols##_##suffix)

#define LAYERNORM(T, suffix)                                                                                                  \
    FORWARD(T, suffix, 256)                                                                                                   \
    FORWARD(T, suffix, 512)                                                                                                   \
    FORWARD(T, suffix, 768)                                                                                                   \
    FORWARD(T, suffix, 1024)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                 \
        layernorm_forward_any_##suffix(T* y, T* z, const T* residual, float* mean, float* rstd, const float* gamma,           \
                                       const float* beta, float eps, unsigned, unsigned cols, Dropout dropout) {              \
        layernorm_forward_any<T>(y, z, residual, mean, rstd, gamma, beta, eps, cols, dropout);                                \
    }                                                                                                                         \
    EXPORT(layernorm_forward_any_##suffix)                                                                                    \
    BACKWARD(T, suffix, 256, 4)                                                                                               \
    BACKWARD(T, suffix, 512, 2)                                                                                               \
    BACKWARD(T, suffix, 768, 1)                                                                                               \
    BACKWARD(T, suffix, 1024, 1)                                                                                              \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                 \
        layernorm_backward_any_##suffix(T* dz, T* dx, const T* dy, const T* z, const float* mean, const float* rstd,          \
                                        const float* gamma, float* partials, unsigned rows, unsigned cols, Dropout dropout) { \
        layernorm_backward_any<T, false>({dz, dx, dy, z, mean, rstd, gamma, partials, rows, cols, dropout});                  \
    }                                                                                                                         \
    EXPORT(layernorm_backward_any_##suffix)

LAYERNORM(float, f32)
LAYERNORM(bf16, bf16)
