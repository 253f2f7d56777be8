// What layernorm.cu and embedding.cu share: normalizing a row, and the gradient of that.
//
//   forward    mean = sum z / H, rstd = 1 / sqrt(sum (z - mean)^2 / H + eps), y = gamma (z - mean) rstd + beta
//   backward   g = gamma dy, xhat = (z - mean) rstd, dz = rstd (g - sum g / H - xhat sum (g xhat) / H)
//              dgamma = sum over rows of dy xhat, dbeta = sum over rows of dy
//
// Forward: one warp holds a row in registers, so that nothing is read twice and no barrier is needed; the variance is taken
// around the mean in a second pass over the registers.
//
// Backward: one vector a thread, a few warps a row, several rows at once in a block. Blocks stay and take every gridDim.x-th
// set of rows, because a thread then keeps the column sums of its columns in registers; each block writes them once, and
// add_partials (rows.cu) adds the blocks in their order. The next rows are loaded before the sums of the present ones meet,
// which keeps loads in flight over the barrier, of which there is one a row.
//
// Rows that no vector fits, or that are longer than these take, go through forward_any and backward_any: one column a
// thread at a time, any length.
#pragma once
#include "common/mask.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

// Threads of a block of backward, at most; two blocks on a multiprocessor leave each thread 80 registers.
constexpr int BACKWARD_THREADS = 384;
// Threads of a block of forward_any and backward_any.
constexpr int ANY_THREADS = 256;

struct Statistics {
    float mean, rstd;
};

// Of the row whose columns lane_column() on a lane holds; what lies beyond `cols` does not count.
template <typename T, int VECS>
__device__ __forceinline__ Statistics row_statistics(const float (&z)[VECS][WIDE<T>], unsigned cols, float eps) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (lane_column<T>(v) >= cols) continue;
#pragma unroll
        for (int i = 0; i < WIDE<T>; i++) sum += z[v][i];
    }
    const float inverse = 1.0f / static_cast<float>(cols), mean = warp_sum(sum) * inverse;
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (lane_column<T>(v) >= cols) continue;
#pragma unroll
        for (int i = 0; i < WIDE<T>; i++) squares = fmaf(z[v][i] - mean, z[v][i] - mean, squares);
    }
    return {mean, 1.0f / sqrtf(warp_sum(squares) * inverse + eps)};
}

// z becomes gamma xhat + beta, of the vector at `column`.
template <int N>
__device__ __forceinline__ void normalize(float (&z)[N], const Statistics& row, const float* gamma, const float* beta, unsigned column) {
    float scale[N], shift[N];
    load_floats(scale, gamma + column);
    load_floats(shift, beta + column);
#pragma unroll
    for (int i = 0; i < N; i++) z[i] = fmaf((z[i] - row.mean) * row.rstd, scale[i], shift[i]);
}

// One block a row: z holds the row, finish(column, y) takes each normalized element.
template <typename T, typename Finish>
__device__ __forceinline__ Statistics forward_any(const T* z, const float* gamma, const float* beta, float eps, unsigned cols, Finish finish) {
    SHARED(float, sums, [ANY_THREADS / WARP]);
    float sum = 0.0f, squares = 0.0f;
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) sum += widen(z[c]);
    const float mean = block_sum(sum, sums) / static_cast<float>(cols);
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) {
        const float x = widen(z[c]) - mean;
        squares = fmaf(x, x, squares);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares, sums) / static_cast<float>(cols) + eps);
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) finish(c, fmaf((widen(z[c]) - mean) * rstd, gamma[c], beta[c]));
    return {mean, rstd};
}

// The arguments of backward. With EMBEDDING the dropout is that of y, and dz (which may be dy) is all that is written;
// otherwise it is that of x, whose gradient dx is written, too, and summed into dbias.
template <typename T>
struct LayerNormGradient {
    T* dz;
    T* dx;
    const T* dy;
    const T* z;
    const float* mean;
    const float* rstd;
    const float* gamma;
    float* partials;  // [blocks, sums, cols]: dgamma, dbeta and, unless EMBEDDING, dbias
    unsigned rows, cols;
    Dropout dropout;
};

// A thread's part of one row on its way through backward.
template <typename T>
struct RowPart {
    Vec<T, WIDE<T>> dy, z;
    Statistics row;
    unsigned key;
};

template <typename T>
__device__ __forceinline__ void fetch(RowPart<T>& part, const LayerNormGradient<T>& a, size_t row, unsigned column) {
    part.dy = load<WIDE<T>>(a.dy + row * a.cols + column);
    part.z = load<WIDE<T>>(a.z + row * a.cols + column);
    part.row = {a.mean[row], a.rstd[row]};
    part.key = a.dropout.threshold ? a.dropout.row_keys[row] : 0;
}

// Blocks of [threads of a row, rows at once]; threads of a row are whole warps.
template <typename T, bool EMBEDDING>
__device__ __forceinline__ void layernorm_backward(const LayerNormGradient<T>& a) {
    constexpr int W = WIDE<T>, SUMS = EMBEDDING ? 2 : 3;
    SHARED(float2, meeting, [2][BACKWARD_THREADS / WARP]);
    SHARED(float, totals, [W][BACKWARD_THREADS]);
    const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x / WARP;
    const unsigned column = threadIdx.x * W;
    const bool inside = column < a.cols;
    const size_t step = static_cast<size_t>(gridDim.x) * blockDim.y;
    size_t row = static_cast<size_t>(blockIdx.x) * blockDim.y + threadIdx.y;

    const float inverse = 1.0f / static_cast<float>(a.cols);
    float sums[SUMS][W] = {}, gamma[W] = {};
    RowPart<T> next = {};
    if (inside) load_floats(gamma, a.gamma + column);
    if (inside && row < a.rows) fetch(next, a, row, column);
    int turn = 0;
    // the same number of turns for all rows of the block, which meet at its barriers
    for (size_t first = row - threadIdx.y; first < a.rows; first += step, row += step, turn ^= 1) {
        const RowPart<T> part = next;
        const bool valid = inside && row < a.rows;
        if (inside && row + step < a.rows) fetch(next, a, row + step, column);
        MaskBytes<T> bytes = {};
        if (a.dropout.threshold) bytes = vector_bytes<T>(a.dropout, part.key, column);
        float2 sum = {0.0f, 0.0f};
        if (valid) {
#pragma unroll
            for (int i = 0; i < W; i++) {
                float dy = widen(part.dy.at[i]);
                if (EMBEDDING && a.dropout.threshold) dy = masked(a.dropout, bytes, i, dy);
                const float xhat = (widen(part.z.at[i]) - part.row.mean) * part.row.rstd, g = dy * gamma[i];
                sums[0][i] = fmaf(dy, xhat, sums[0][i]);
                sums[1][i] += dy;
                sum.x += g;
                sum.y = fmaf(g, xhat, sum.y);
            }
        }
        sum = {warp_sum(sum.x), warp_sum(sum.y)};
        if (threadIdx.x % WARP == 0) meeting[turn][thread / WARP] = sum;
        __syncthreads();  // one is enough: the sums of the last turn lie in the other half
        sum = meeting[turn][threadIdx.y * warps];
#pragma unroll 4
        for (unsigned w = 1; w < warps; w++) {
            const float2 other = meeting[turn][threadIdx.y * warps + w];
            sum = {sum.x + other.x, sum.y + other.y};
        }
        if (!valid) continue;
        const float mean_g = sum.x * inverse, mean_g_xhat = sum.y * inverse;
        float dz[W], dx[W];
#pragma unroll
        for (int i = 0; i < W; i++) {
            float dy = widen(part.dy.at[i]);
            if (EMBEDDING && a.dropout.threshold) dy = masked(a.dropout, bytes, i, dy);
            const float xhat = (widen(part.z.at[i]) - part.row.mean) * part.row.rstd;
            float d = part.row.rstd * (dy * gamma[i] - mean_g - xhat * mean_g_xhat);
            dz[i] = d;
            if constexpr (!EMBEDDING) {
                if (a.dropout.threshold) d = masked(a.dropout, bytes, i, d);
                dx[i] = d;
                sums[2][i] += d;
            }
        }
        store(a.dz + row * a.cols + column, narrowed<T>(dz));
        if constexpr (!EMBEDDING) store(a.dx + row * a.cols + column, narrowed<T>(dx));
    }

#pragma unroll
    for (int s = 0; s < SUMS; s++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < W; i++) totals[i][thread] = sums[s][i];
        __syncthreads();
        if (threadIdx.y > 0 || !inside) continue;
        for (unsigned y = 1; y < blockDim.y; y++) {
#pragma unroll
            for (int i = 0; i < W; i++) sums[s][i] += totals[i][y * blockDim.x + thread];
        }
        store_floats(a.partials + (static_cast<size_t>(blockIdx.x) * SUMS + s) * a.cols + column, sums[s]);
    }
}

// One row a block at a time; the block's column sums are kept in `partials` itself.
template <typename T, bool EMBEDDING>
__device__ __forceinline__ void layernorm_backward_any(const LayerNormGradient<T>& a) {
    constexpr int SUMS = EMBEDDING ? 2 : 3;
    SHARED(float, meeting, [ANY_THREADS / WARP]);
    const float inverse = 1.0f / static_cast<float>(a.cols);
    float* sums = a.partials + static_cast<size_t>(blockIdx.x) * SUMS * a.cols;
    for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) {
        for (int s = 0; s < SUMS; s++) sums[static_cast<size_t>(s) * a.cols + c] = 0.0f;
    }
    for (size_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const size_t at = row * a.cols;
        const float mean = a.mean[row], rstd = a.rstd[row];
        const unsigned key = a.dropout.threshold ? a.dropout.row_keys[row] : 0;
        const auto gradient = [&](unsigned c) {
            const float dy = widen(a.dy[at + c]);
            return EMBEDDING && a.dropout.threshold ? masked_column(a.dropout, key, c, dy) : dy;
        };
        float sum_g = 0.0f, sum_g_xhat = 0.0f;
        for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) {
            const float g = gradient(c) * a.gamma[c];
            sum_g += g;
            sum_g_xhat = fmaf(g, (widen(a.z[at + c]) - mean) * rstd, sum_g_xhat);
        }
        const float mean_g = block_sum(sum_g, meeting) * inverse;
        const float mean_g_xhat = block_sum(sum_g_xhat, meeting) * inverse;
        for (unsigned c = threadIdx.x; c < a.cols; c += blockDim.x) {
            const float dy = gradient(c), xhat = (widen(a.z[at + c]) - mean) * rstd;
            const float d = rstd * (dy * a.gamma[c] - mean_g - xhat * mean_g_xhat);
            sums[c] = fmaf(dy, xhat, sums[c]);
            sums[static_cast<size_t>(a.cols) + c] += dy;
            a.dz[at + c] = narrow<T>(d);
            if constexpr (!EMBEDDING) {
                const float dx = a.dropout.threshold ? masked_column(a.dropout, key, c, d) : d;
                a.dx[at + c] = narrow<T>(dx);
                sums[static_cast<size_t>(2) * a.cols + c] += dx;
            }
        }
    }
}
