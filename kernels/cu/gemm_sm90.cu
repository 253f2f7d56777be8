// The three products of a linear layer y [rows, outputs] = x [rows, inputs] w [outputs, inputs]^T + bias, in bf16 on compute
// capability 9.0 (common/gemm_sm90.cuh has the design and its costs):
//
//   gemm_forward     y = x w^T + bias            A = x and B = w^T have k (inputs) in rows of memory
//   gemm_dgrad       dx = dy w                   A = dy has, B = w has n (inputs) in rows of memory
//   gemm_dgrad_add   dx += dy w                  the old dx is loaded while products run
//   gemm_wgrad       dw += dy^T x, of f32        A and B have m (outputs) and n (inputs) in rows of memory
//
// Nothing is transposed: wgmma takes either order from shared memory. Where tiles are fewer than multiprocessors the sum over
// k of wgrad is cut into parts, each to a matrix of its own, which gemm_add_parts adds in order.
#include "common/gemm_epilogue_sm90.cuh"

using namespace gemm_sm90;

#define GEMM(W)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_forward_##W(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,                        \
                         const __grid_constant__ TensorMap y, const bf16* bias, unsigned m, unsigned n, unsigned k) {     \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, K_MAJOR, K_MAJOR>(shared, x, w, {m, n, k, 1}, Biased<W>{y, {bias}});                                      \
    }                                                                                                                     \
    EXPORT(gemm_forward_##W)                                                                                              \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_dgrad_##W(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,                         \
                       const __grid_constant__ TensorMap dx, unsigned m, unsigned n, unsigned k) {                        \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, K_MAJOR, MN_MAJOR>(shared, dy, w, {m, n, k, 1}, Biased<W>{dx, {nullptr}});                                \
    }                                                                                                                     \
    EXPORT(gemm_dgrad_##W)                                                                                                \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_dgrad_add_##W(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,                     \
                           const __grid_constant__ TensorMap dx, unsigned m, unsigned n, unsigned k) {                    \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, K_MAJOR, MN_MAJOR>(shared, dy, w, {m, n, k, 1}, Added<W>{dx});                                            \
    }                                                                                                                     \
    EXPORT(gemm_dgrad_add_##W)                                                                                            \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_wgrad_##W(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap x, float* dw, unsigned m,  \
                       unsigned n, unsigned k, unsigned parts, unsigned add) {                                            \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, MN_MAJOR, MN_MAJOR>(shared, dy, x, {m, n, k, parts}, Float<W>{dw, add != 0});                             \
    }                                                                                                                     \
    EXPORT(gemm_wgrad_##W)

GEMM(256)
GEMM(128)

// dst += the sum of the parts, each of `vectors` times four floats, in their order.
extern "C" __global__ void __launch_bounds__(256) gemm_add_parts(float* dst, const float* partials, unsigned parts, unsigned vectors) {
    const unsigned at = blockIdx.x * 256 + threadIdx.x;
    if (at >= vectors) return;
    const size_t stride = static_cast<size_t>(vectors) * 4;
    Vec<float, 4> sum = load<4>(partials + static_cast<size_t>(at) * 4);
    for (unsigned part = 1; part < parts; part++) {
        const Vec<float, 4> x = load<4>(partials + part * stride + static_cast<size_t>(at) * 4);
#pragma unroll
        for (int i = 0; i < 4; i++) sum.at[i] += x.at[i];
    }
    Vec<float, 4> before = load<4>(dst + static_cast<size_t>(at) * 4);
#pragma unroll
    for (int i = 0; i < 4; i++) before.at[i] += sum.at[i];
    store(dst + static_cast<size_t>(at) * 4, before);
}
EXPORT(gemm_add_parts)
