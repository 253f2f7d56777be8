// Rows gathered and scattered, and sums over rows.
//
//   gather        y[i] = x[rows[i]]
//   scatter_add   x[rows[i]] += y[i], no two rows equal
//   bias_grad     partials of the column sums of dy (common/columns.cuh), which
//   add_partials  adds to the gradients: dst[c] += sum over blocks of partials[block][c], in the blocks' order
//
// Row numbers are device memory, which the host does not look into: whoever makes them has them below the table's rows.
//
// Bound by memory: gather moves 2 R C sizeof(T) bytes, scatter_add 3 R C sizeof(T), bias_grad R C sizeof(T).
#include "common/columns.cuh"

// Vectors of a row that a lane has in flight.
constexpr int IN_FLIGHT = 4;

// One warp a row, blocks of any number of warps.
template <typename T, int W>
__device__ __forceinline__ void gather(T* __restrict__ y, const T* __restrict__ x, const unsigned* __restrict__ rows, unsigned count, unsigned cols) {
    const unsigned i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (i >= count) return;
    const T* from = x + static_cast<size_t>(rows[i]) * cols;
    T* to = y + static_cast<size_t>(i) * cols;
    for (unsigned first = threadIdx.x % WARP * W; first < cols; first += IN_FLIGHT * WARP * W) {
        Vec<T, W> part[IN_FLIGHT];
#pragma unroll
        for (int v = 0; v < IN_FLIGHT; v++) {
            if (first + v * WARP * W < cols) part[v] = load<W>(from + first + v * WARP * W);
        }
#pragma unroll
        for (int v = 0; v < IN_FLIGHT; v++) {
            if (first + v * WARP * W < cols) store(to + first + v * WARP * W, part[v]);
        }
    }
}

template <typename T, int W>
__device__ __forceinline__ void scatter_add(T* __restrict__ x, const T* __restrict__ y, const unsigned* __restrict__ rows, unsigned count, unsigned cols) {
    const unsigned i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (i >= count) return;
    T* to = x + static_cast<size_t>(rows[i]) * cols;
    const T* from = y + static_cast<size_t>(i) * cols;
    for (unsigned first = threadIdx.x % WARP * W; first < cols; first += IN_FLIGHT * WARP * W) {
        Vec<T, W> a[IN_FLIGHT], b[IN_FLIGHT];
#pragma unroll
        for (int v = 0; v < IN_FLIGHT; v++) {
            if (first + v * WARP * W >= cols) continue;
            a[v] = load<W>(to + first + v * WARP * W);
            b[v] = load<W>(from + first + v * WARP * W);
        }
#pragma unroll
        for (int v = 0; v < IN_FLIGHT; v++) {
            if (first + v * WARP * W >= cols) continue;
            float sum[W];
#pragma unroll
            for (int j = 0; j < W; j++) sum[j] = widen(a[v].at[j]) + widen(b[v].at[j]);
            store(to + first + v * WARP * W, narrowed<T>(sum));
        }
    }
}

#define ROWS(T, suffix, name, W)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        gather_##name##suffix(T* y, const T* x, const unsigned* rows, unsigned count, unsigned cols) {                      \
        gather<T, W>(y, x, rows, count, cols);                                                                              \
    }                                                                                                                       \
    EXPORT(gather_##name##suffix)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                       \
        scatter_add_##name##suffix(T* x, const T* y, const unsigned* rows, unsigned count, unsigned cols) {                 \
        scatter_add<T, W>(x, y, rows, count, cols);                                                                         \
    }                                                                                                                       \
    EXPORT(scatter_add_##name##suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)                                                            \
        bias_grad_##name##suffix(float* partials, const T* dy, unsigned rows, unsigned cols, unsigned chunk) {              \
        column_sums(partials, rows, cols, chunk, MatrixColumns<T, W>{dy, nullptr});                                         \
    }                                                                                                                       \
    EXPORT(bias_grad_##name##suffix)

ROWS(float, f32, , WIDE<float>)
ROWS(float, f32, any_, 1)
ROWS(bf16, bf16, , WIDE<bf16>)
ROWS(bf16, bf16, any_, 1)

// Up to three tensors of `cols` elements, one a blockIdx.y, partials [blocks, gridDim.y, cols]; null is left out. Blocks of
// [32, 32] threads take 32 columns: each row of threads sums every 32nd block, the first adds these up.
extern "C" __global__ void __launch_bounds__(1024)
    add_partials_f32(float* first, float* second, float* third, const float* partials, unsigned blocks, unsigned cols) {
    SHARED(float, totals, [WARP][WARP]);
    float* dst = blockIdx.y == 0 ? first : blockIdx.y == 1 ? second : third;
    if (!dst) return;
    const unsigned column = blockIdx.x * WARP + threadIdx.x;
    const size_t stride = static_cast<size_t>(gridDim.y) * cols;
    float sum = 0.0f;
    if (column < cols) {
        const float* partial = partials + static_cast<size_t>(blockIdx.y) * cols + column;
#pragma unroll 4
        for (unsigned block = threadIdx.y; block < blocks; block += WARP) sum += partial[block * stride];
    }
    totals[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= cols) return;
    for (int y = 1; y < WARP; y++) sum += totals[y][threadIdx.x];
    dst[column] += sum;
}
EXPORT(add_partials_f32)
