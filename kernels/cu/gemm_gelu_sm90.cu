// The products around a GELU, with it fused (common/gemm_sm90.cuh has the products, common/gelu.cuh the math), on compute capability 9.0:
//
//   gemm_gelu_forward     x = a w^T + bias, y = gelu(x)              a [m, k], w [n, k], x and y [m, n]
//   gemm_gelu_backward    dx = (dy w) gelu'(x), column sums of dx    dy [m, k], w [k, n], x and dx [m, n]
//
// Forward keeps x, rounded, and takes GELU of what it keeps. Backward loads x while the products run; it takes neither dy w nor the
// sums' terms rounded. A warpgroup writes the sums of its 64 rows, the rows of partials [ceil(m / 64), n] are added in their order by
// add_partials (rows.cu).
//
// Bound by arithmetic, of which GELU is not the least: a tile of 128 x 256 takes 1,024 cycles for each 64 of k, and its 32,768
// elements take two of the 16 results a cycle of the multiprocessor's special functions, 4,096 cycles. They run beside the other
// warpgroup's products. Saved are the passes of a kernel of its own: 2 m n elements forward, 3 m n backward.
#include "common/gelu.cuh"
#include "common/gemm_epilogue_sm90.cuh"

namespace gemm_sm90 {

template <int W, typename Gelu>
struct GeluForward {
    using Memory = gemm_sm90::Memory<W, 2, false>;
    const TensorMap &kept, &out;
    BoxBias bias;
    Outbox<2> boxes = {};

    __device__ __forceinline__ void open(const Memory& memory, const Seat& seat) { boxes.base = memory.slots(seat.consumer); }
    __device__ __forceinline__ void begin(const Problem& p, const Seat& seat, const Share& s) { bias.load(p, seat, s.column); }

    __device__ __forceinline__ void finish(const float (&d)[W / 2], const Problem& p, const Seat& seat, const Share& s) {
        const int count = boxes_of<W>(p, seat, s);
#pragma unroll
        for (int box = 0; box < W / BOX_COLUMNS; box++) {
            if (box >= count) continue;
            const int column = s.column + box * BOX_COLUMNS;
            unsigned x[8][2];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int at = 32 * box + 4 * i;
                const float low = low_bf16(bias.at[i]), high = high_bf16(bias.at[i]);
                unsigned* word = seat.word(boxes.slot(), i);
                word[0] = x[i][0] = pack_bf16(d[at] + low, d[at + 1] + high);
                word[256] = x[i][1] = pack_bf16(d[at + 2] + low, d[at + 3] + high);
            }
            if (box + 1 < count) bias.load(p, seat, column + BOX_COLUMNS);
            boxes.put(seat, kept, row_of(seat, s), column);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                unsigned* word = seat.word(boxes.slot(), i);
#pragma unroll
                for (int half = 0; half < 2; half++)
                    word[256 * half] = pack_bf16(Gelu::value(low_bf16(x[i][half])), Gelu::value(high_bf16(x[i][half])));
            }
            boxes.put(seat, out, row_of(seat, s), column);
        }
    }
};

// A lane and the one whose row differs in `BIT` exchange halves of 2 N terms: each keeps N sums.
template <int N, unsigned BIT>
__device__ __forceinline__ void fold(float (&x)[16]) {
    const bool upper = (threadIdx.x % WARP / 4 & BIT) != 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float kept = upper ? x[N + i] : x[i], given = upper ? x[i] : x[N + i];
        x[i] = kept + __shfl_xor_sync(ALL_LANES, given, 4 * BIT);
    }
}

// Sums over the warp's rows of 16 columns' terms a thread: in the end it has the first two, of the (lane / 4)-th eight columns.
__device__ __forceinline__ void add_rows(float (&x)[16]) {
    fold<8, 4>(x);
    fold<4, 2>(x);
    fold<2, 1>(x);
}

template <int W, typename Gelu>
struct GeluBackward {
    static constexpr int SLOTS = W / BOX_COLUMNS;
    using Memory = gemm_sm90::Memory<W, SLOTS, true>;
    const TensorMap &kept, &out;
    float* partials;
    Exchange<SLOTS> boxes = {};
    float* sums = nullptr;
    // Which half of `sums` is written next.
    int turn = 0;

    __device__ __forceinline__ void open(const Memory& memory, const Seat& seat) {
        boxes = {memory.slots(seat.consumer), memory.loaded(seat.consumer), 0};
        sums = memory.sums(seat.consumer);
    }
    __device__ __forceinline__ void begin(const Problem& p, const Seat& seat, const Share& s) const {
        if (seat.leads) boxes.load(kept, row_of(seat, s), s.column, boxes_of<W>(p, seat, s));
    }

    // Rows and columns outside of D have sums and x of 0: their terms are 0.
    __device__ __forceinline__ void finish(const float (&d)[W / 2], const Problem& p, const Seat& seat, const Share& s) {
        const int count = boxes_of<W>(p, seat, s), row = row_of(seat, s);
#pragma unroll
        for (int box = 0; box < SLOTS; box++) {
            if (box >= count) continue;
            const int column = s.column + box * BOX_COLUMNS;
            unsigned char* slot = boxes.take(box);
            float terms[16];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int at = 32 * box + 4 * i;
                unsigned* word = seat.word(slot, i);
                float dx[4];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const unsigned x = word[256 * half];
                    dx[2 * half] = d[at + 2 * half] * Gelu::slope(low_bf16(x));
                    dx[2 * half + 1] = d[at + 2 * half + 1] * Gelu::slope(high_bf16(x));
                    word[256 * half] = pack_bf16(dx[2 * half], dx[2 * half + 1]);
                }
                terms[2 * i] = dx[0] + dx[2];
                terms[2 * i + 1] = dx[1] + dx[3];
            }
            add_rows(terms);
            float* warps = sums + turn * 4 * BOX_COLUMNS;
            store(warps + seat.warp * BOX_COLUMNS + threadIdx.x % WARP * 2, Vec<float, 2>{{terms[0], terms[1]}});
            // Its barrier is that of the sums, too: who adds them has done so before the barrier after the next box.
            boxes.put(seat, out, row, column, box);
            const unsigned mine = threadIdx.x % WARPGROUP;
            if (mine < BOX_COLUMNS && column + mine < p.n)
                partials[static_cast<size_t>(row / 64) * p.n + column + mine] =
                    (warps[mine] + warps[BOX_COLUMNS + mine]) + (warps[2 * BOX_COLUMNS + mine] + warps[3 * BOX_COLUMNS + mine]);
            turn ^= 1;
        }
    }
};

}  // namespace gemm_sm90

using namespace gemm_sm90;

#define GEMM_GELU(W, form, Form)                                                                                          \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_gelu_##form##_forward_##W(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap w,          \
                                       const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap y,          \
                                       const bf16* bias, unsigned m, unsigned n, unsigned k) {                            \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, K_MAJOR, K_MAJOR>(shared, a, w, {m, n, k, 1}, GeluForward<W, Form<true>>{x, y, {bias}});                    \
    }                                                                                                                     \
    EXPORT(gemm_gelu_##form##_forward_##W)                                                                                \
    extern "C" __global__ void __launch_bounds__(GEMM_THREADS, 1)                                                         \
        gemm_gelu_##form##_backward_##W(const __grid_constant__ TensorMap dy, const __grid_constant__ TensorMap w,        \
                                        const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap dx,        \
                                        float* partials, unsigned m, unsigned n, unsigned k) {                            \
        SHARED_ALIGNED(unsigned char, shared);                                                                            \
        gemm<W, K_MAJOR, MN_MAJOR>(shared, dy, w, {m, n, k, 1}, GeluBackward<W, Form<true>>{x, dx, partials});            \
    }                                                                                                                     \
    EXPORT(gemm_gelu_##form##_backward_##W)

GEMM_GELU(256, tanh, GeluTanh)
GEMM_GELU(128, tanh, GeluTanh)
GEMM_GELU(256, erf, GeluErf)
GEMM_GELU(128, erf, GeluErf)
