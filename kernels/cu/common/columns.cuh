// Sums over the columns of a matrix [rows, cols] that is read (and, for some, written) on the way.
//
// A block takes a stripe of 32 vectors and `chunk` rows: grid [stripes, chunks, sets]. Each thread sums its columns over
// every COLUMN_ROWS-th row, the block adds its threads in their order, and add_partials (rows.cu) the chunks in theirs. Which
// rows a sum takes in which order depends on the grid alone.
//
// A source says what is summed:
//   WIDTH                  columns of a thread
//   TURNS                  rows that a thread loads before it needs the first
//   Raw                    what it loads of them
//   takes(row)             whether the row counts, for this blockIdx.z
//   load(at)               of the elements from index `at` on
//   finish(at, raw, x)     the numbers to be summed
#pragma once
#include "common/vector.cuh"

// Rows that a block reads at once.
constexpr int COLUMN_ROWS = 8;
constexpr int COLUMN_THREADS = COLUMN_ROWS * WARP;

// partials [chunks, sets, cols]; blocks of [32, COLUMN_ROWS] threads.
template <typename Source>
__device__ __forceinline__ void column_sums(float* __restrict__ partials, unsigned rows, unsigned cols, unsigned chunk, const Source& source) {
    constexpr int W = Source::WIDTH, TURNS = Source::TURNS;
    SHARED(float, totals, [COLUMN_ROWS][W][WARP]);
    const unsigned column = (blockIdx.x * WARP + threadIdx.x) * W;
    const size_t first = static_cast<size_t>(blockIdx.y) * chunk;
    const size_t last = first + chunk < rows ? first + chunk : rows;
    float sums[W] = {};
    if (column < cols) {
        for (size_t row = first + threadIdx.y; row < last; row += COLUMN_ROWS * TURNS) {
            typename Source::Raw raw[TURNS];
            bool takes[TURNS];
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                const size_t r = row + turn * COLUMN_ROWS;
                takes[turn] = r < last && source.takes(r);
                if (takes[turn]) raw[turn] = source.load(r * cols + column);
            }
#pragma unroll
            for (int turn = 0; turn < TURNS; turn++) {
                if (!takes[turn]) continue;
                float x[W];
                source.finish((row + turn * COLUMN_ROWS) * cols + column, raw[turn], x);
#pragma unroll
                for (int i = 0; i < W; i++) sums[i] += x[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < W; i++) totals[threadIdx.y][i][threadIdx.x] = sums[i];
    __syncthreads();
    if (threadIdx.y > 0 || column >= cols) return;
    float* out = partials + (static_cast<size_t>(blockIdx.y) * gridDim.z + blockIdx.z) * cols + column;
#pragma unroll
    for (int i = 0; i < W; i++) {
        float sum = totals[0][i][threadIdx.x];
        for (int y = 1; y < COLUMN_ROWS; y++) sum += totals[y][i][threadIdx.x];
        out[i] = sum;
    }
}

// The matrix itself; all rows, or with `sets` those whose set is blockIdx.z.
template <typename T, int W>
struct MatrixColumns {
    static constexpr int WIDTH = W, TURNS = 4;
    using Raw = Vec<T, W>;
    const T* x;
    const unsigned* sets;

    __device__ __forceinline__ bool takes(size_t row) const { return !sets || sets[row] == blockIdx.z; }
    __device__ __forceinline__ Raw load(size_t at) const { return ::load<W>(x + at); }
    __device__ __forceinline__ void finish(size_t, const Raw& raw, float (&out)[W]) const {
#pragma unroll
        for (int i = 0; i < W; i++) out[i] = widen(raw.at[i]);
    }
};
