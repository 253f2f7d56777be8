// What layernorm.cu and embedding.cu share: normalizing a row, and the gradient of that.
//
//   forward    mean = sum z / H, rstd = 1 / sqrt(sum (z - mean)^2 / H + eps), y = gamma (z - mean) rstd + beta
//   backward   g = gamma dy, xhat = (z - mean) rstd, dz = rstd (g - sum g / H - xhat sum (g xhat) / H)
//              dgamma = sum over rows of dy xhat, dbeta = sum over rows of dy
//
// A row lies in the registers of its holder, so that nothing is read twice; the variance is taken around the mean in a second
// pass over the registers. The holder is a warp (WarpRow) of rows up to 1024 long, which then need no barrier, and a block
// (BlockRow) of those up to 4096.
//
// Backward: blocks stay and take every gridDim.x-th set of rows, because a thread then keeps the column sums of its columns in
// registers; each block writes them once, and add_partials (rows.cu) adds the blocks in their order. The registers leave room
// for few warps, so rows are copied into shared memory ahead of their turn (RowRing): the memory is kept busy by what is on its
// way, not by other warps.
//
// Rows that no vector fits, or that are longer still, go through forward_any and layernorm_backward_any: a block a row, one
// column a thread at a time, any length.
#pragma once
#include "common/async.cuh"
#include "common/mask.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

// Threads of a block of backward whose warps hold rows, the most of one that holds a row (forward, backward), and threads of a
// block of those for any length.
constexpr int BACKWARD_THREADS = 256;
constexpr int WIDE_FORWARD_THREADS = 256;
constexpr int WIDE_BACKWARD_THREADS = 512;
constexpr int ANY_THREADS = 256;

// Vectors of a thread of a block that holds a row: 16 columns forward, 8 backward.
template <typename T>
constexpr int WIDE_FORWARD_VECS = 16 / WIDE<T>;
template <typename T>
constexpr int WIDE_BACKWARD_VECS = 8 / WIDE<T>;

struct Statistics {
    float mean, rstd;
};

// Each warp of a block holds a row.
template <typename T>
struct WarpRow {
    static constexpr bool ALONE = false;  // whether no other row is in the block

    __device__ __forceinline__ unsigned in_block() const { return threadIdx.x / WARP; }
    __device__ __forceinline__ unsigned rows_of_block() const { return blockDim.x / WARP; }
    __device__ __forceinline__ bool is_first() const { return threadIdx.x % WARP == 0; }
    // Where vector `v` of the thread begins.
    __device__ __forceinline__ unsigned column(int v) const { return lane_column<T>(v); }
    __device__ __forceinline__ float sum(float x) const { return warp_sum(x); }
    __device__ __forceinline__ void sum(float& x, float& y) {
        x = warp_sum(x);
        y = warp_sum(y);
    }
};

// A block holds a row.
template <typename T>
struct BlockRow {
    static constexpr bool ALONE = true;
    float* meeting;  // shared, [4, WARP]
    unsigned turn;

    __device__ __forceinline__ unsigned in_block() const { return 0; }
    __device__ __forceinline__ unsigned rows_of_block() const { return 1; }
    __device__ __forceinline__ bool is_first() const { return threadIdx.x == 0; }
    __device__ __forceinline__ unsigned column(int v) const { return (v * blockDim.x + threadIdx.x) * WIDE<T>; }
    __device__ __forceinline__ float sum(float x) const { return block_sum(x, meeting); }
    // One barrier: the next call writes elsewhere, and the one after that finds this call's numbers read.
    __device__ __forceinline__ void sum(float& x, float& y) {
        float* numbers = meeting + turn * (2 * WARP);
        turn ^= 1;
        x = warp_sum(x);
        y = warp_sum(y);
        if (threadIdx.x % WARP == 0) {
            numbers[threadIdx.x / WARP] = x;
            numbers[WARP + threadIdx.x / WARP] = y;
        }
        __syncthreads();
        x = numbers[0];
        y = numbers[WARP];
        for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) {
            x += numbers[warp];
            y += numbers[WARP + warp];
        }
    }
};

// Of the row that the holder has in z; what lies beyond `cols` does not count.
template <typename T, int VECS, typename Holder>
__device__ __forceinline__ Statistics row_statistics(const Holder& holder, const float (&z)[VECS][WIDE<T>], unsigned cols, float eps) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (holder.column(v) >= cols) continue;
#pragma unroll
        for (int i = 0; i < WIDE<T>; i++) sum += z[v][i];
    }
    const float inverse = 1.0f / static_cast<float>(cols), mean = holder.sum(sum) * inverse;
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (holder.column(v) >= cols) continue;
#pragma unroll
        for (int i = 0; i < WIDE<T>; i++) squares = fmaf(z[v][i] - mean, z[v][i] - mean, squares);
    }
    return {mean, 1.0f / sqrtf(holder.sum(squares) * inverse + eps)};
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

// A block's column sums: those of its threads, one after another. `totals` is shared, a float for each of a thread's columns and
// each thread.
template <typename T, int SUMS, int VECS, typename Holder>
__device__ __forceinline__ void write_sums(const LayerNormGradient<T>& a, const Holder& holder, const float (&sums)[SUMS][VECS][WIDE<T>],
                                           float* totals) {
    constexpr int W = WIDE<T>;
    float* out = a.partials + static_cast<size_t>(blockIdx.x) * SUMS * a.cols;
    if constexpr (Holder::ALONE) {
#pragma unroll
        for (int s = 0; s < SUMS; s++) {
#pragma unroll
            for (int v = 0; v < VECS; v++) {
                if (holder.column(v) < a.cols) store_floats(out + static_cast<size_t>(s) * a.cols + holder.column(v), sums[s][v]);
            }
        }
        return;
    }
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const auto total = [&](unsigned w, unsigned i, unsigned l) -> float& { return totals[(w * (VECS * W) + i) * WARP + l]; };
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VECS * W; i++) total(warp, i, lane) = sums[s][i / W][i % W];
        __syncthreads();
        for (unsigned c = threadIdx.x; c < a.cols; c += BACKWARD_THREADS) {
            const unsigned from = c / W % WARP, i = c / (W * WARP) * W + c % W;
            float sum = total(0, i, from);
            for (int w = 1; w < BACKWARD_THREADS / WARP; w++) sum += total(w, i, from);
            out[static_cast<size_t>(s) * a.cols + c] = sum;
        }
    }
}

// Rows of dy and z on their way to shared memory, STAGES of them for each holder. A thread copies what it needs itself and no
// other reads it, so that no barrier is needed.
template <typename T, int VECS, typename Holder>
struct RowRing {
    // In f32, which is there for parity, rows are not copied ahead.
    static constexpr int STAGES = sizeof(T) == 2 ? 3 : 1;
    using Part = Vec<T, WIDE<T>>;
    Part* parts;  // shared, [STAGES, 2, VECS, blockDim.x]

    __device__ __forceinline__ Part* at(unsigned stage, int which, int v) const {
        return parts + ((stage * 2 + which) * VECS + v) * blockDim.x + threadIdx.x;
    }

    // Threads beyond the row get zeros.
    __device__ __forceinline__ void fetch(const LayerNormGradient<T>& a, const Holder& holder, unsigned stage, unsigned row) const {
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const bool inside = row < a.rows && holder.column(v) < a.cols;
            const size_t from = inside ? static_cast<size_t>(row) * a.cols + holder.column(v) : 0;
            copy_async16(at(stage, 0, v), a.dy + from, inside);
            copy_async16(at(stage, 1, v), a.z + from, inside);
        }
        commit_copies();
    }
};

// What belongs to a row as a whole.
struct RowNumbers {
    Statistics statistics;
    unsigned key;
};

template <typename T>
__device__ __forceinline__ RowNumbers row_numbers(const LayerNormGradient<T>& a, unsigned row) {
    if (row >= a.rows) return {};
    return {{a.mean[row], a.rstd[row]}, a.dropout.threshold ? a.dropout.row_keys[row] : 0};
}

// xhat of z, and dz of (dy gamma, z), given the row's means of g and of g xhat. Where z is bf16 one fused operation takes the
// place of a difference and a product: what cancels in it is 2^-24 of z, and z itself is rounded to 2^-9.
template <typename T>
struct Normalized {
    static constexpr bool FUSED = sizeof(T) == 2;
    float mean, rstd, shift;
    float slope, offset;
    float mean_g, mean_g_xhat;

    __device__ __forceinline__ explicit Normalized(const Statistics& row)
        : mean(row.mean), rstd(row.rstd), shift(-row.mean * row.rstd), slope(0.0f), offset(0.0f), mean_g(0.0f), mean_g_xhat(0.0f) {}

    __device__ __forceinline__ float xhat(float z) const { return FUSED ? fmaf(z, rstd, shift) : (z - mean) * rstd; }

    __device__ __forceinline__ void set_means(float of_g, float of_g_xhat) {
        mean_g = of_g;
        mean_g_xhat = of_g_xhat;
        slope = -rstd * rstd * of_g_xhat;
        offset = -rstd * fmaf(of_g_xhat, shift, of_g);
    }

    __device__ __forceinline__ float gradient(float dy, float gamma, float z) const {
        if constexpr (FUSED) return fmaf(dy * rstd, gamma, fmaf(z, slope, offset));
        return rstd * (fmaf(dy, gamma, -mean_g) - xhat(z) * mean_g_xhat);
    }
};

// A holder's row of at most VECS vectors a thread. Dynamic shared memory has room for the ring, and for the sums of all threads.
// Threads beyond the row go along, on zeros and with the first gamma, and write nothing: no branch keeps the compiler from
// mixing the work on different vectors.
template <typename T, int VECS, bool EMBEDDING, bool DROPS, typename Holder>
__device__ __forceinline__ void layernorm_backward_rows(const LayerNormGradient<T>& a, Holder holder) {
    constexpr int W = WIDE<T>, SUMS = EMBEDDING ? 2 : 3;
    using Ring = RowRing<T, VECS, Holder>;
    SHARED_DYNAMIC(unsigned char, shared);
    const Ring ring = {reinterpret_cast<typename Ring::Part*>(shared)};
    const auto column = [&](int v) { return holder.column(v); };
    const unsigned step = gridDim.x * holder.rows_of_block();
    const float inverse = 1.0f / static_cast<float>(a.cols);
    float sums[SUMS][VECS][W] = {};

    unsigned row = blockIdx.x * holder.rows_of_block() + holder.in_block(), stage = 0;
#pragma unroll
    for (int s = 0; s + 1 < Ring::STAGES; s++) ring.fetch(a, holder, s, row + s * step);
    RowNumbers next = row_numbers(a, row);
    for (; row < a.rows; row += step) {
        // The stage that the row before left; what was read of it has been used.
        ring.fetch(a, holder, (stage + Ring::STAGES - 1) % Ring::STAGES, row + (Ring::STAGES - 1) * step);
        const RowNumbers own = next;
        next = row_numbers(a, row + step);
        MaskBytes<T> bytes[VECS];
        if constexpr (DROPS) row_bytes(bytes, a.dropout, own.key, column);
        Normalized<T> normalized(own.statistics);
        wait_copies<Ring::STAGES - 1>();

        const auto masked_dy = [&](const typename Ring::Part& dy, int v, int i) {
            return EMBEDDING && DROPS ? masked(a.dropout, bytes[v], i, widen(dy.at[i])) : widen(dy.at[i]);
        };
        float sum_g = 0.0f, sum_g_xhat = 0.0f;
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const typename Ring::Part row_dy = *ring.at(stage, 0, v), row_z = *ring.at(stage, 1, v);
            float gamma[W];
            load_floats(gamma, a.gamma + (column(v) < a.cols ? column(v) : 0));
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float dy = masked_dy(row_dy, v, i), dy_xhat = dy * normalized.xhat(widen(row_z.at[i]));
                sums[0][v][i] += dy_xhat;
                sums[1][v][i] += dy;
                sum_g = fmaf(dy, gamma[i], sum_g);
                sum_g_xhat = fmaf(dy_xhat, gamma[i], sum_g_xhat);
            }
        }
        holder.sum(sum_g, sum_g_xhat);
        normalized.set_means(sum_g * inverse, sum_g_xhat * inverse);
#pragma unroll
        for (int v = 0; v < VECS; v++) {
            const typename Ring::Part row_dy = *ring.at(stage, 0, v), row_z = *ring.at(stage, 1, v);
            float gamma[W], dz[W], dx[W];
            load_floats(gamma, a.gamma + (column(v) < a.cols ? column(v) : 0));
#pragma unroll
            for (int i = 0; i < W; i++) {
                dz[i] = normalized.gradient(masked_dy(row_dy, v, i), gamma[i], widen(row_z.at[i]));
                if constexpr (!EMBEDDING) {
                    dx[i] = DROPS ? masked(a.dropout, bytes[v], i, dz[i]) : dz[i];
                    sums[2][v][i] += dx[i];
                }
            }
            if (column(v) >= a.cols) continue;
            const size_t at = static_cast<size_t>(row) * a.cols + column(v);
            store(a.dz + at, narrowed<T>(dz));
            if constexpr (!EMBEDDING) store(a.dx + at, narrowed<T>(dx));
        }
        stage = stage + 1 == Ring::STAGES ? 0 : stage + 1;
    }
    wait_copies<0>();
    write_sums<T>(a, holder, sums, reinterpret_cast<float*>(shared));
}

template <typename T, int VECS, bool EMBEDDING, typename Holder>
__device__ __forceinline__ void layernorm_backward(const LayerNormGradient<T>& a, Holder holder) {
    if (a.dropout.threshold) {
        layernorm_backward_rows<T, VECS, EMBEDDING, true>(a, holder);
    } else {
        layernorm_backward_rows<T, VECS, EMBEDDING, false>(a, holder);
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
