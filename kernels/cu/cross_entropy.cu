// Softmax, cross-entropy and its gradient over the first `classes` columns of logits [rows, stride], in place:
//
//   max = max x, sum = sum exp(x - max), loss = ln(sum) + max - x[label]
//   dx  = exp(x - max) scale / sum - (scale at the label), 0 from column `classes` on
//
// Nothing is kept for backward: the gradient stands where the logits were. Without `write` the logits are left alone.
// sums [2] += the rows' losses, the number of rows whose first largest logit is the label.
//
// A block takes a row. Every thread loads up to HELD vectors of 16 bytes, all in flight at once, takes maximum and sum of
// what it holds, and writes the gradient from the same registers: rows of up to 1024 HELD vectors (65,536 columns of bf16,
// 32,768 of f32) are read once. Of longer rows the last 1024 HELD vectors stay in registers and the rest is read twice.
// Short rows, and those that 16-byte accesses cannot reach, take a warp each, element by element.
//
// Bound by memory: 2 sizeof(T) rows stride bytes (half of it to evaluate only), beside 2 exponentials an element.
//
// A logit that is not finite makes the loss not finite (-infinity counts as a probability of 0), as does a label that is
// none of the classes.
#include "common/base.cuh"
#include "common/reduce.cuh"
#include "common/words.cuh"

constexpr int HELD = 8;
// Where maxima start: finite, so that an empty thread's difference from the row's maximum is no NaN.
constexpr float LOWEST = -3.402823466e38f;

struct RowLoss {
    float loss, right;
};

// The logits' own rounding hides the error of the fast one where they are bf16.
template <typename T>
__device__ __forceinline__ float exponential(float x);
template <>
__device__ __forceinline__ float exponential<float>(float x) { return expf(x); }
template <>
__device__ __forceinline__ float exponential<bf16>(float x) { return __expf(x); }

// Maximum, and sum of exp(x - maximum), of some elements.
struct Softmax {
    float max, sum;
};

// Of all lanes, in all lanes.
template <typename T>
__device__ __forceinline__ Softmax warp_softmax(Softmax own) {
    const float max = warp_max(own.max);
    return {max, warp_sum(own.sum * exponential<T>(own.max - max))};
}

__device__ __forceinline__ RowLoss row_loss(Softmax all, float at_label, bool earlier) {
    return {logf(all.sum) + (all.max - at_label), at_label == all.max && !earlier ? 1.0f : 0.0f};
}

// Vectors of a row that the threads hold at a time.
template <typename T>
struct Tile {
    static constexpr int N = WIDE<T>;
    Words x[HELD];

    __device__ __forceinline__ static unsigned column(unsigned tile, int k) {
        return ((tile * HELD + k) * blockDim.x + threadIdx.x) * N;
    }

    __device__ __forceinline__ static Words nothing() {
        Words x;
        for (int j = 0; j < N; j++) set_element<T>(x, j, -INFINITY);
        return x;
    }

    // Columns past the classes become -infinity: they change neither maximum nor sum.
    __device__ __forceinline__ void take(const T* row, unsigned tile, unsigned classes, unsigned stride) {
#pragma unroll
        for (int k = 0; k < HELD; k++)
            x[k] = column(tile, k) < stride ? load_words(row + column(tile, k)) : nothing();
        // the row's last vectors only
        if (column(tile, HELD - 1) + N <= classes) return;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (column(tile, k) + j >= classes) set_element<T>(x[k], j, -INFINITY);
        }
    }

    // The largest before the vector with the label, and of the others.
    __device__ __forceinline__ float2 max(unsigned tile, unsigned label) const {
        Words before = nothing(), after = nothing();
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (column(tile, k) + N <= label)
                before = max_words<T>(before, x[k]);
            else
                after = max_words<T>(after, x[k]);
        }
        float2 y = {LOWEST, LOWEST};
#pragma unroll
        for (int j = 0; j < N; j++) y = {fmaxf(y.x, element<T>(before, j)), fmaxf(y.y, element<T>(after, j))};
        return y;
    }

    // Sum of exp(x - max).
    __device__ __forceinline__ float sum(float max) const {
        float y = 0.0f;
#pragma unroll
        for (int k = 0; k < HELD; k++)
#pragma unroll
            for (int j = 0; j < N; j++) y += exponential<T>(element<T>(x[k], j) - max);
        return y;
    }

    __device__ __forceinline__ void put(T* row, unsigned tile, unsigned classes, unsigned stride, float max, float factor) const {
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            const unsigned first = column(tile, k);
            if (first >= stride) continue;
            Vec<T, N> y;
#pragma unroll
            for (int j = 0; j < N; j++) y.at[j] = narrow<T>(exponential<T>(element<T>(x[k], j) - max) * factor);
            if (first + N > classes) {
                // also where the factor is NaN
#pragma unroll
                for (int j = 0; j < N; j++)
                    if (first + j >= classes) y.at[j] = narrow<T>(0.0f);
            }
            store<N>(row + first, y);
        }
    }
};

template <typename T>
__device__ __forceinline__ void block_row(T* logits, RowLoss* losses, const unsigned* labels, unsigned classes, unsigned stride,
                                          float scale, unsigned write) {
    SHARED(Softmax, partials, [WARP]);
    T* row = logits + static_cast<size_t>(blockIdx.x) * stride;
    const unsigned label = labels[blockIdx.x], lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    const unsigned columns = HELD * WIDE<T> * blockDim.x, tiles = (stride + columns - 1) / columns;
    const float at_label = label < classes ? widen(row[label]) : NAN;

    Tile<T> held;
    Softmax own = {LOWEST, 0.0f};
    // whether a logit before the label's is as large
    const unsigned beside = label / WIDE<T> * WIDE<T> + threadIdx.x;
    bool earlier = label < classes && beside < label && widen(row[beside]) >= at_label;
    for (unsigned tile = 0; tile < tiles; tile++) {
        held.take(row, tile, classes, stride);
        const float2 most = held.max(tile, label);
        const float max = fmaxf(own.max, fmaxf(most.x, most.y));
        own = {max, own.sum * exponential<T>(own.max - max) + held.sum(max)};
        earlier |= most.x >= at_label;
    }
    const Softmax of_warp = warp_softmax<T>(own);
    if (lane == 0) partials[threadIdx.x / WARP] = of_warp;
    earlier = __syncthreads_or(earlier) != 0;  // and all of the row has been read
    const Softmax all = warp_softmax<T>(lane < warps ? partials[lane] : Softmax{LOWEST, 0.0f});
    if (threadIdx.x == 0) losses[blockIdx.x] = row_loss(all, at_label, earlier);
    if (write == 0) return;

    const float factor = scale / all.sum;
    for (unsigned tile = tiles; tile-- > 0;) {
        if (tile + 1 < tiles) held.take(row, tile, classes, stride);
        held.put(row, tile, classes, stride, all.max, factor);
    }
    // by the thread that has just written this element
    const bool mine = label / WIDE<T> % blockDim.x == threadIdx.x && label < classes;
    if (mine) row[label] = narrow<T>(exponential<T>(at_label - all.max) * factor - scale);
}

template <typename T>
__device__ __forceinline__ void warp_row(T* logits, RowLoss* losses, const unsigned* labels, unsigned rows, unsigned classes,
                                         unsigned stride, float scale, unsigned write) {
    const unsigned lane = threadIdx.x % WARP, r = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (r >= rows) return;
    T* row = logits + static_cast<size_t>(r) * stride;
    const unsigned label = labels[r];
    const float at_label = label < classes ? widen(row[label]) : NAN;

    Softmax own = {LOWEST, 0.0f};
    bool earlier = false;
    for (unsigned column = lane; column < classes; column += WARP) {
        const float x = widen(row[column]);
        if (x > own.max) own = {x, own.sum * exponential<T>(own.max - x)};
        own.sum += exponential<T>(x - own.max);
        earlier |= column < label && x >= at_label;
    }
    const Softmax all = warp_softmax<T>(own);
    earlier = __any_sync(ALL_LANES, earlier) != 0;
    if (lane == 0) losses[r] = row_loss(all, at_label, earlier);
    if (write == 0) return;

    const float factor = scale / all.sum;
    for (unsigned column = lane; column < stride; column += WARP) {
        const float y = exponential<T>(widen(row[column]) - all.max) * factor;
        row[column] = narrow<T>(column >= classes ? 0.0f : column == label ? y - scale : y);
    }
}

#define CROSS_ENTROPY(T, name)                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024)                                                                     \
        cross_entropy_block_##name(T* logits, RowLoss* losses, const unsigned* labels, unsigned classes, unsigned stride,  \
                                   float scale, unsigned write) {                                                          \
        block_row<T>(logits, losses, labels, classes, stride, scale, write);                                               \
    }                                                                                                                      \
    EXPORT(cross_entropy_block_##name)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                      \
        cross_entropy_warp_##name(T* logits, RowLoss* losses, const unsigned* labels, unsigned rows, unsigned classes,     \
                                  unsigned stride, float scale, unsigned write) {                                          \
        warp_row<T>(logits, losses, labels, rows, classes, stride, scale, write);                                          \
    }                                                                                                                      \
    EXPORT(cross_entropy_warp_##name)

CROSS_ENTROPY(float, f32)
CROSS_ENTROPY(bf16, bf16)

// One block of 1024 threads. In f64: a million rows' losses lose nothing.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_sums_f32(float* sums, const RowLoss* losses, unsigned rows) {
    SHARED(double, partials, [WARP]);
    double loss = 0.0, right = 0.0;
    for (unsigned r = threadIdx.x; r < rows; r += blockDim.x) {
        loss += static_cast<double>(losses[r].loss);
        right += static_cast<double>(losses[r].right);
    }
    loss = block_sum(loss, partials);
    right = block_sum(right, partials);
    if (threadIdx.x == 0) {
        sums[0] += static_cast<float>(loss);
        sums[1] += static_cast<float>(right);
    }
}
EXPORT(cross_entropy_sums_f32)
