// What layernorm.cu and embedding.cu share: normalizing a row, and the gradient of that.
//
//   forward    mean = sum z / H, rstd = 1 / sqrt(sum (z - mean)^2 / H + eps), y = gamma (z - mean) rstd + beta
//   backward   g = gamma dy, xhat = (z - mean) rstd, dz = rstd (g - sum g / H - xhat sum (g xhat) / H)
//              dgamma = sum over rows of dy xhat, dbeta = sum over rows of dy
//
// Forward: one warp holds a row in registers, so that nothing is read twice and no barrier is needed; the variance is taken
// around the mean in a second pass over the registers.
//
// Backward: again one warp a row. Blocks stay and take every gridDim.x-th set of rows, because a lane then keeps the column sums
// of its columns in registers; each block writes them once, and add_partials (rows.cu) adds the blocks in their order.
//
// Rows that no vector fits, or that are longer than 1024, go through forward_any and layernorm_backward_any: a block a row, one
// column a thread at a time, any length.
#pragma once
#include "common/mask.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

// Threads of a block of backward, and of those for any length.
constexpr int BACKWARD_THREADS = 256;
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

// One block a row, in f32 in dynamic shared memory: `row(column)` gives its elements, finish(column, y) takes the normalized.
template <typename Row, typename Finish>
__device__ __forceinline__ Statistics forward_any(const float* gamma, const float* beta, float eps, unsigned cols, Row row, Finish finish) {
    SHARED(float, sums, [ANY_THREADS / WARP]);
    SHARED_DYNAMIC(float, z);
    const float inverse = 1.0f / static_cast<float>(cols);
    float sum = 0.0f, squares = 0.0f;
    // each thread reads what it wrote itself
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) {
        z[c] = row(c);
        sum += z[c];
    }
    const float mean = block_sum(sum, sums) * inverse;
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) squares = fmaf(z[c] - mean, z[c] - mean, squares);
    const float rstd = 1.0f / sqrtf(block_sum(squares, sums) * inverse + eps);
    for (unsigned c = threadIdx.x; c < cols; c += blockDim.x) finish(c, fmaf((z[c] - mean) * rstd, gamma[c], beta[c]));
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

// A lane's part of one row on its way through backward.
template <typename T, int VECS>
struct RowPart {
    Vec<T, WIDE<T>> dy[VECS], z[VECS];
    Statistics row;
    unsigned key;

    // Lanes beyond the row load its first vector again, so that nothing branches.
    __device__ __forceinline__ void fetch(const LayerNormGradient<T>& a, unsigned at) {
        const size_t first = static_cast<size_t>(at) * a.cols;
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const size_t from = first + (lane_column<T>(v) < a.cols ? lane_column<T>(v) : 0);
            dy[v] = load<WIDE<T>>(a.dy + from);
            z[v] = load<WIDE<T>>(a.z + from);
        }
        row = {a.mean[at], a.rstd[at]};
        key = a.dropout.threshold ? a.dropout.row_keys[at] : 0;
    }
};

// One warp a row of at most VECS vectors a lane, blocks of BACKWARD_THREADS.
template <typename T, int VECS, bool EMBEDDING>
__device__ __forceinline__ void layernorm_backward(const LayerNormGradient<T>& a) {
    constexpr int W = WIDE<T>, SUMS = EMBEDDING ? 2 : 3, WARPS = BACKWARD_THREADS / WARP;
    SHARED(float, totals, [WARPS][VECS * W][WARP]);
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, step = gridDim.x * WARPS;
    const float inverse = 1.0f / static_cast<float>(a.cols);
    float sums[SUMS][VECS][W] = {};
    for (unsigned row = blockIdx.x * WARPS + warp; row < a.rows; row += step) {
        RowPart<T, VECS> part;
        part.fetch(a, row);
        MaskBytes<T> bytes[VECS];
        if (a.dropout.threshold) row_bytes(bytes, a.dropout, part.key);
        const auto gradient = [&](int v, int i) {
            const float dy = widen(part.dy[v].at[i]);
            return EMBEDDING && a.dropout.threshold ? masked(a.dropout, bytes[v], i, dy) : dy;
        };
        float sum_g = 0.0f, sum_g_xhat = 0.0f;
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            if (lane_column<T>(v) >= a.cols) continue;
            float gamma[W];
            load_floats(gamma, a.gamma + lane_column<T>(v));
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float dy = gradient(v, i), xhat = (widen(part.z[v].at[i]) - part.row.mean) * part.row.rstd;
                sums[0][v][i] = fmaf(dy, xhat, sums[0][v][i]);
                sums[1][v][i] += dy;
                sum_g = fmaf(dy, gamma[i], sum_g);
                sum_g_xhat = fmaf(dy * gamma[i], xhat, sum_g_xhat);
            }
        }
        const float mean_g = warp_sum(sum_g) * inverse, mean_g_xhat = warp_sum(sum_g_xhat) * inverse;
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            if (lane_column<T>(v) >= a.cols) continue;
            float gamma[W], dz[W], dx[W];
            load_floats(gamma, a.gamma + lane_column<T>(v));
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float xhat = (widen(part.z[v].at[i]) - part.row.mean) * part.row.rstd;
                dz[i] = part.row.rstd * (fmaf(gradient(v, i), gamma[i], -mean_g) - xhat * mean_g_xhat);
                if constexpr (!EMBEDDING) {
                    dx[i] = a.dropout.threshold ? masked(a.dropout, bytes[v], i, dz[i]) : dz[i];
                    sums[2][v][i] += dx[i];
                }
            }
            const size_t at = static_cast<size_t>(row) * a.cols + lane_column<T>(v);
            store(a.dz + at, narrowed<T>(dz));
            if constexpr (!EMBEDDING) store(a.dx + at, narrowed<T>(dx));
        }
    }

#pragma unroll
    for (int s = 0; s < SUMS; s++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VECS * W; i++) totals[warp][i][lane] = sums[s][i / W][i % W];
        __syncthreads();
        float* out = a.partials + (static_cast<size_t>(blockIdx.x) * SUMS + s) * a.cols;
        for (unsigned c = threadIdx.x; c < a.cols; c += BACKWARD_THREADS) {
            const unsigned from = c / W % WARP, i = c / (W * WARP) * W + c % W;
            float sum = totals[0][i][from];
            for (int w = 1; w < WARPS; w++) sum += totals[w][i][from];
            out[c] = sum;
        }
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
