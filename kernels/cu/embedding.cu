// The sum of three embeddings, normalized (common/layernorm.cuh), and its gradient.
//
//   forward    z = word[tokens] + position[positions] + kind[types], y = dropout(layernorm(z))          z, y [T, H]
//   backward   dz from dropout(dy), in place of dy; then the rows of dz are added to those of the tables:
//              dword and dposition by groups of rows, dkind as column sums by type (common/columns.cuh)
//
// Saved for backward: z, mean and rstd [T]; the dropout's mask is drawn again.
//
// A group's rows are added in the order in which the group lists them, without atomics. The list of all groups' rows is cut
// into chunks of GROUP_CHUNK, a block each, so that one very long group (a frequent word) is shared by many blocks: what of a
// group lies in one chunk is added at once; a group that goes over the end of a chunk leaves its parts in scratch, and
// group_join adds them in order. The cuts depend on the lengths of the groups alone.
//
// Ids, positions, types and row numbers are device memory, which the host does not look into: whoever makes a batch has them
// inside the tables.
//
// Bound by memory: forward reads three rows and writes two for each token, 5 T H sizeof(T) bytes at most, of which tables of
// positions and types stay in cache; backward reads dy and z and writes dz, 3 T H sizeof(T), reads dz three times again, and
// reads and writes the rows of the gradients of the tables that occur, 8 bytes an element.
#include "common/columns.cuh"
#include "common/layernorm.cuh"

struct Tables {
    const unsigned* tokens;
    const unsigned* positions;
    const unsigned* types;
    const void* word;
    const void* position;
    const void* kind;
};

template <typename T>
__device__ __forceinline__ const T* table_row(const void* table, unsigned row, unsigned cols) {
    return static_cast<const T*>(table) + static_cast<size_t>(row) * cols;
}

// A holder's row of at most VECS vectors a thread.
template <typename T, int VECS, typename Holder>
__device__ __forceinline__ void embedding_forward(const Holder& holder, T* __restrict__ y, T* __restrict__ z, float* __restrict__ mean, float* __restrict__ rstd,
                                                  const Tables& tables, const float* __restrict__ gamma, const float* __restrict__ beta,
                                                  float eps, unsigned rows, unsigned cols, const Dropout& dropout) {
    constexpr int W = WIDE<T>;
    const auto column = [&](int v) { return holder.column(v); };
    const unsigned row = blockIdx.x * holder.rows_of_block() + holder.in_block();
    if (row >= rows) return;
    const size_t at = static_cast<size_t>(row) * cols;
    const unsigned key = dropout.threshold ? dropout.row_keys[row] : 0;
    const T* word = table_row<T>(tables.word, tables.tokens[row], cols);
    const T* position = table_row<T>(tables.position, tables.positions[row], cols);
    const T* kind = table_row<T>(tables.kind, tables.types[row], cols);
    // threads beyond the row load its first vector again: no branch, so that all loads go out before the first arrives
    Vec<T, W> a[VECS], b[VECS], c[VECS];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        const unsigned from = column(v) < cols ? column(v) : 0;
        a[v] = load<W>(word + from);
        b[v] = load<W>(position + from);
        c[v] = load<W>(kind + from);
    }
    float sum[VECS][W];
#pragma unroll
    for (int v = 0; v < VECS; v++) {
#pragma unroll
        for (int i = 0; i < W; i++) sum[v][i] = widen(a[v].at[i]) + widen(b[v].at[i]) + widen(c[v].at[i]);
        if (column(v) < cols) store(z + at + column(v), narrowed<T>(sum[v]));
    }
    const Statistics statistics = row_statistics<T>(holder, sum, cols, eps);
    MaskBytes<T> bytes[VECS];
    if (dropout.threshold) row_bytes(bytes, dropout, key, column);
#pragma unroll
    for (int v = 0; v < VECS; v++) {
        if (column(v) >= cols) continue;
        normalize(sum[v], statistics, gamma, beta, column(v));
        if (dropout.threshold) {
#pragma unroll
            for (int i = 0; i < W; i++) sum[v][i] = masked(dropout, bytes[v], i, sum[v][i]);
        }
        store(y + at + column(v), narrowed<T>(sum[v]));
    }
    if (holder.is_first()) {
        mean[row] = statistics.mean;
        rstd[row] = statistics.rstd;
    }
}

template <typename T>
__device__ __forceinline__ void embedding_forward_any(T* y, T* z, float* mean, float* rstd, const Tables& tables, const float* gamma,
                                                      const float* beta, float eps, unsigned cols, const Dropout& dropout) {
    const size_t row = blockIdx.x, at = row * cols;
    const unsigned key = dropout.threshold ? dropout.row_keys[row] : 0;
    const T* word = table_row<T>(tables.word, tables.tokens[row], cols);
    const T* position = table_row<T>(tables.position, tables.positions[row], cols);
    const T* kind = table_row<T>(tables.kind, tables.types[row], cols);
    const auto sum = [&](unsigned c) {
        const float x = widen(word[c]) + widen(position[c]) + widen(kind[c]);
        z[at + c] = narrow<T>(x);
        return x;
    };
    const Statistics statistics = forward_any(gamma, beta, eps, cols, sum, [&](unsigned c, float out) {
        y[at + c] = narrow<T>(dropout.threshold ? masked_column(dropout, key, c, out) : out);
    });
    if (threadIdx.x == 0) {
        mean[row] = statistics.mean;
        rstd[row] = statistics.rstd;
    }
}

constexpr unsigned GROUP_CHUNK = 32;
constexpr int GROUP_THREADS = 128;
// Rows that a thread has in flight.
constexpr int GROUP_TURNS = 8;

// Rows of dz by groups: group g is row ids[g] of the table, from rows starts[g] to starts[g + 1] of `rows`.
template <typename T>
struct GroupSum {
    float* table;
    float* parts;  // [chunks, 2, cols]: of the group that began before the chunk, of the group that goes on after it
    const T* dz;
    const unsigned* ids;
    const unsigned* starts;
    const unsigned* rows;
    unsigned groups, entries, cols;
};

// The group that holds an entry: the last one that starts at or before it.
__device__ __forceinline__ unsigned group_of(const unsigned* starts, unsigned groups, unsigned entry) {
    unsigned low = 0, high = groups;
    while (high - low > 1) {
        const unsigned middle = low + (high - low) / 2;
        if (starts[middle] <= entry) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

template <int W>
__device__ __forceinline__ void add_to(float* dst, const float (&x)[W]) {
    if constexpr (W == 1) {
        dst[0] += x[0];
    } else {
        float sum[W];
        load_floats(sum, dst);
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] += x[i];
        store_floats(dst, sum);
    }
}

template <int W>
__device__ __forceinline__ void write_part(float* dst, const float (&x)[W]) {
    if constexpr (W == 1) {
        dst[0] = x[0];
    } else {
        store_floats(dst, x);
    }
}

// Grid [chunks, stripes of GROUP_THREADS * W columns].
template <typename T, int W>
__device__ __forceinline__ void group_sum(const GroupSum<T>& a) {
    const unsigned column = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (column >= a.cols) return;
    const unsigned begin = blockIdx.x * GROUP_CHUNK;
    const unsigned end = a.entries - begin < GROUP_CHUNK ? a.entries : begin + GROUP_CHUNK;
    unsigned group = group_of(a.starts, a.groups, begin);
    unsigned start = a.starts[group], stop = a.starts[group + 1];
    float sums[W] = {};
    for (unsigned first = begin; first < end; first += GROUP_TURNS) {
        Vec<T, W> x[GROUP_TURNS];
#pragma unroll
        for (int turn = 0; turn < GROUP_TURNS; turn++) {
            if (first + turn < end) x[turn] = load<W>(a.dz + static_cast<size_t>(a.rows[first + turn]) * a.cols + column);
        }
#pragma unroll
        for (int turn = 0; turn < GROUP_TURNS; turn++) {
            const unsigned next = first + turn + 1;
            if (next > end) continue;
#pragma unroll
            for (int i = 0; i < W; i++) sums[i] += widen(x[turn].at[i]);
            if (next < stop && next < end) continue;
            if (start >= begin && stop <= end) {
                add_to(a.table + static_cast<size_t>(a.ids[group]) * a.cols + column, sums);
            } else {
                write_part(a.parts + (static_cast<size_t>(blockIdx.x) * 2 + (start >= begin)) * a.cols + column, sums);
            }
            if (next == end) continue;
#pragma unroll
            for (int i = 0; i < W; i++) sums[i] = 0.0f;
            start = stop;
            // an empty group ends where it starts
            do stop = a.starts[++group + 1];
            while (stop == start);
        }
    }
}

// Adds the parts of the group that goes over from chunk blockIdx.x to the next, if it began in this one.
template <typename T, int W>
__device__ __forceinline__ void group_join(const GroupSum<T>& a) {
    const unsigned column = (blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (column >= a.cols) return;
    const unsigned begin = blockIdx.x * GROUP_CHUNK, end = begin + GROUP_CHUNK;
    const unsigned group = group_of(a.starts, a.groups, end), start = a.starts[group], stop = a.starts[group + 1];
    if (start < begin || start >= end) return;
    float sums[W];
    const auto part = [&](size_t chunk, unsigned which) { return load<W>(a.parts + (chunk * 2 + which) * a.cols + column); };
    const Vec<float, W> head = part(blockIdx.x, 1);
#pragma unroll
    for (int i = 0; i < W; i++) sums[i] = head.at[i];
    const size_t last = (stop - 1) / GROUP_CHUNK;
#pragma unroll 4
    for (size_t chunk = blockIdx.x + 1; chunk <= last; chunk++) {
        const Vec<float, W> more = part(chunk, 0);
#pragma unroll
        for (int i = 0; i < W; i++) sums[i] += more.at[i];
    }
    add_to(a.table + static_cast<size_t>(a.ids[group]) * a.cols + column, sums);
}

#define FORWARD(T, suffix, cols)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                             \
        embedding_forward_##cols##_##suffix(T* y, T* z, float* mean, float* rstd, Tables tables, const float* gamma,              \
                                            const float* beta, float eps, unsigned rows, unsigned width, Dropout dropout) {       \
        embedding_forward<T, cols / WARP / WIDE<T>>(WarpRow<T>{}, y, z, mean, rstd, tables, gamma, beta, eps, rows, width,        \
                                                    dropout);                                                                     \
    }                                                                                                                             \
    EXPORT(embedding_forward_##cols##_##suffix)

// `resident` blocks fit a multiprocessor.
#define BACKWARD(T, suffix, cols, resident)                                                                                       \
    extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, resident)                                                      \
        embedding_backward_##cols##_##suffix(T* dy, const T* z, const float* mean, const float* rstd, const float* gamma,         \
                                             float* partials, unsigned rows, unsigned width, Dropout dropout) {                   \
        layernorm_backward<T, cols / WARP / WIDE<T>, true>(                                                                       \
            LayerNormGradient<T>{dy, nullptr, dy, z, mean, rstd, gamma, partials, rows, width, dropout}, WarpRow<T>{});           \
    }                                                                                                                             \
    EXPORT(embedding_backward_##cols##_##suffix)

#define GROUPS(T, suffix, name, W)                                                                                                \
    extern "C" __global__ void __launch_bounds__(GROUP_THREADS)                                                                   \
        group_sum_##name##suffix(float* table, float* parts, const T* dz, const unsigned* ids, const unsigned* starts,            \
                                 const unsigned* rows, unsigned groups, unsigned entries, unsigned cols) {                        \
        group_sum<T, W>({table, parts, dz, ids, starts, rows, groups, entries, cols});                                            \
    }                                                                                                                             \
    EXPORT(group_sum_##name##suffix)                                                                                              \
    extern "C" __global__ void __launch_bounds__(GROUP_THREADS)                                                                   \
        group_join_##name##suffix(float* table, float* parts, const T* dz, const unsigned* ids, const unsigned* starts,           \
                                  const unsigned* rows, unsigned groups, unsigned entries, unsigned cols) {                       \
        group_join<T, W>({table, parts, dz, ids, starts, rows, groups, entries, cols});                                           \
    }                                                                                                                             \
    EXPORT(group_join_##name##suffix)                                                                                             \
    extern "C" __global__ void __launch_bounds__(COLUMN_THREADS)                                                                  \
        kind_sums_##name##suffix(float* partials, const T* dz, const unsigned* types, unsigned rows, unsigned cols, unsigned chunk) { \
        column_sums(partials, rows, cols, chunk, MatrixColumns<T, W>{dz, types});                                                 \
    }                                                                                                                             \
    EXPORT(kind_sums_##name##suffix)

#define EMBEDDING(T, suffix)                                                                                                      \
    FORWARD(T, suffix, 256)                                                                                                       \
    FORWARD(T, suffix, 512)                                                                                                       \
    FORWARD(T, suffix, 768)                                                                                                       \
    FORWARD(T, suffix, 1024)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(WIDE_FORWARD_THREADS)                                                            \
        embedding_forward_wide_##suffix(T* y, T* z, float* mean, float* rstd, Tables tables, const float* gamma,                  \
                                        const float* beta, float eps, unsigned rows, unsigned width, Dropout dropout) {           \
        SHARED(float, meeting, [4 * WARP]);                                                                                       \
        embedding_forward<T, WIDE_FORWARD_VECS<T>>(BlockRow<T>{meeting, 0}, y, z, mean, rstd, tables, gamma, beta, eps, rows,     \
                                                   width, dropout);                                                               \
    }                                                                                                                             \
    EXPORT(embedding_forward_wide_##suffix)                                                                                       \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                     \
        embedding_forward_any_##suffix(T* y, T* z, float* mean, float* rstd, Tables tables, const float* gamma,                   \
                                       const float* beta, float eps, unsigned, unsigned cols, Dropout dropout) {                  \
        embedding_forward_any<T>(y, z, mean, rstd, tables, gamma, beta, eps, cols, dropout);                                      \
    }                                                                                                                             \
    EXPORT(embedding_forward_any_##suffix)                                                                                        \
    BACKWARD(T, suffix, 256, 2)                                                                                                   \
    BACKWARD(T, suffix, 512, 1)                                                                                                   \
    BACKWARD(T, suffix, 768, 1)                                                                                                   \
    BACKWARD(T, suffix, 1024, 1)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WIDE_BACKWARD_THREADS)                                                           \
        embedding_backward_wide_##suffix(T* dy, const T* z, const float* mean, const float* rstd, const float* gamma,             \
                                         float* partials, unsigned rows, unsigned width, Dropout dropout) {                       \
        SHARED(float, meeting, [4 * WARP]);                                                                                       \
        layernorm_backward<T, WIDE_BACKWARD_VECS<T>, true>(                                                                       \
            LayerNormGradient<T>{dy, nullptr, dy, z, mean, rstd, gamma, partials, rows, width, dropout},                          \
            BlockRow<T>{meeting, 0});                                                                                             \
    }                                                                                                                             \
    EXPORT(embedding_backward_wide_##suffix)                                                                                      \
    extern "C" __global__ void __launch_bounds__(ANY_THREADS)                                                                     \
        embedding_backward_any_##suffix(T* dy, const T* z, const float* mean, const float* rstd, const float* gamma,              \
                                        float* partials, unsigned rows, unsigned cols, Dropout dropout) {                         \
        layernorm_backward_any<T, true>({dy, nullptr, dy, z, mean, rstd, gamma, partials, rows, cols, dropout});                  \
    }                                                                                                                             \
    EXPORT(embedding_backward_any_##suffix)                                                                                       \
    GROUPS(T, suffix, , WIDE<T>)                                                                                                  \
    GROUPS(T, suffix, any_, 1)

EMBEDDING(float, f32)
EMBEDDING(bf16, bf16)
