// Products of matrices of bf16 by wgmma, with what follows them fused: D [m, n] = A [m, k] B [k, n], sums in f32.
//
// A block lives as long as the kernel and takes tiles of D, 128 rows by W (256 or 128) columns, in turns with the others. Its first
// warpgroup is the producer: one thread of it lets the copy engine fill a ring of stages with the tiles' A and B, 64 of k each.
// Two warpgroups are consumers with 64 rows of the tile each, sums in registers. They share the stages and nothing else: one
// may be ahead of the other by all stages, so that one's epilogue runs beside the other's products.
//
// Cycles of a step of a stage, 128 x 256 x 64: 8 wgmma of 128 at full rate = 1,024. They read 80 KiB of shared memory, 80 of
// 128 bytes a cycle; the stage's 48 KiB come from the L2 at 48 bytes a cycle (64 bytes a cycle in a tile of 128 x 128: for few
// tiles only). A thread has 128 sums and up to 240 registers (the producer keeps 24). Shared memory, of 227 KiB: 4 stages of 48 and
// 2 slots of 8 a warpgroup for what is stored; where a tile is loaded for the epilogue too, 3 stages, and slots for all of it.
//
// Tiles are taken GROUPED rows of tiles at a time, column by column, so that those under way at once share A and B in the L2.
// Every sum has one owner and one order: a rerun gives the same bits.
//
// What is outside of a matrix is read as zeros and not written: m, n and k may be anything that a tensor map describes (rows of
// multiples of 16 bytes).
#pragma once
#include "common/tma.cuh"
#include "common/wgmma.cuh"

namespace gemm_sm90 {

constexpr int GEMM_ROWS = 128, GEMM_DEPTH = 64, GROUPED = 16;
constexpr int WARPGROUP = 128, CONSUMERS = 2, GEMM_THREADS = (1 + CONSUMERS) * WARPGROUP;
// A box of 64 rows of 128 bytes: of an operand, or of D, 64 columns of bf16.
constexpr int BOX_BYTES = 64 * 128, BOX_COLUMNS = 64;
constexpr int SHARED_MOST = 227 << 10, BARRIER_BYTES = 1024;
// Column sums of a box by each of 4 warps, twice, so that one may be added while the next is written.
constexpr int SUMS_BYTES = 2 * 4 * BOX_COLUMNS * 4;

// What a kernel is given, all in elements. `parts` blocks share the sum over k of a tile.
struct Problem {
    unsigned m, n, k, parts;
};

// A tile's share of k: steps `first` to `last` of GEMM_DEPTH.
struct Share {
    int row, column, first, last;
    unsigned part;
};

__device__ __forceinline__ unsigned ceil_div(unsigned a, unsigned b) { return (a + b - 1) / b; }

template <int W>
__device__ __forceinline__ unsigned shares(const Problem& p) {
    return ceil_div(p.m, GEMM_ROWS) * ceil_div(p.n, W) * p.parts;
}

template <int W>
__device__ __forceinline__ Share share(const Problem& p, unsigned item) {
    const unsigned high = ceil_div(p.m, GEMM_ROWS), wide = ceil_div(p.n, W), steps = ceil_div(p.k, GEMM_DEPTH);
    const unsigned part = item / (high * wide), tile = item % (high * wide);
    const unsigned group = tile / (GROUPED * wide), inside = tile % (GROUPED * wide);
    const unsigned rows = high - group * GROUPED < GROUPED ? high - group * GROUPED : GROUPED;
    return {static_cast<int>((group * GROUPED + inside % rows) * GEMM_ROWS), static_cast<int>(inside / rows * W),
            static_cast<int>(steps * part / p.parts), static_cast<int>(steps * (part + 1) / p.parts), part};
}

// How a block's shared memory is divided: stages, then each consumer's slots and sums, then barriers.
template <int W, int SLOTS_, bool SUMS>
struct Memory {
    static constexpr int SLOTS = SLOTS_;
    static constexpr int A_BYTES = GEMM_ROWS * GEMM_DEPTH * 2, STAGE_BYTES = A_BYTES + W * GEMM_DEPTH * 2;
    static constexpr int OWN_BYTES = SLOTS * BOX_BYTES + (SUMS ? SUMS_BYTES : 0);
    static constexpr int STAGES = (SHARED_MOST - BARRIER_BYTES - CONSUMERS * OWN_BYTES) / STAGE_BYTES;
    static constexpr int BYTES = STAGES * STAGE_BYTES + CONSUMERS * OWN_BYTES + BARRIER_BYTES;
    static_assert(STAGES >= 3 && (2 * STAGES + CONSUMERS * SLOTS) * 8 <= BARRIER_BYTES, "room for all");

    unsigned char* base;

    __device__ __forceinline__ unsigned char* a(int stage) const { return base + stage * STAGE_BYTES; }
    __device__ __forceinline__ unsigned char* b(int stage) const { return a(stage) + A_BYTES; }
    // Slots begin at multiples of 1,024 bytes: all of them come before all sums.
    __device__ __forceinline__ unsigned char* slots(int consumer) const {
        return base + STAGES * STAGE_BYTES + consumer * SLOTS * BOX_BYTES;
    }
    __device__ __forceinline__ float* sums(int consumer) const {
        return reinterpret_cast<float*>(base + STAGES * STAGE_BYTES + CONSUMERS * SLOTS * BOX_BYTES + consumer * SUMS_BYTES);
    }
    __device__ __forceinline__ Mbarrier* barriers() const { return reinterpret_cast<Mbarrier*>(base + BYTES - BARRIER_BYTES); }
    // A stage is full, a stage is empty, a slot has been loaded.
    __device__ __forceinline__ Mbarrier& full(int stage) const { return barriers()[stage]; }
    __device__ __forceinline__ Mbarrier& empty(int stage) const { return barriers()[STAGES + stage]; }
    __device__ __forceinline__ Mbarrier* loaded(int consumer) const { return barriers() + 2 * STAGES + consumer * SLOTS; }
};

// A place in the ring of stages, and the parity of the round.
template <int STAGES>
struct Ring {
    int stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// `lines` rows of A, or columns of B, from `line` on, and 64 of k from `depth` on. Boxes of the map are [lines, 64] or [64, 64].
template <int MAJOR>
__device__ __forceinline__ void load_operand(unsigned char* to, const TensorMap& map, int lines, int line, int depth, Mbarrier& full) {
    if constexpr (MAJOR == K_MAJOR) {
        tma_load(to, map, line, depth, full);
    } else {
        for (int box = 0; box < lines / 64; box++) tma_load(to + box * BOX_BYTES, map, depth, line + 64 * box, full);
    }
}

template <int W, int A, int B, typename M>
__device__ __forceinline__ void produce(const M& memory, const TensorMap& a, const TensorMap& b, const Problem& p) {
    Ring<M::STAGES> ring;
    for (unsigned item = blockIdx.x; item < shares<W>(p); item += gridDim.x) {
        const Share s = share<W>(p, item);
        for (int step = s.first; step < s.last; step++, ring.next()) {
            mbarrier_wait(memory.empty(ring.stage), ring.parity ^ 1);
            Mbarrier& full = memory.full(ring.stage);
            mbarrier_arrive_expect(full, M::STAGE_BYTES);
            load_operand<A>(memory.a(ring.stage), a, GEMM_ROWS, s.row, step * GEMM_DEPTH, full);
            load_operand<B>(memory.b(ring.stage), b, W, s.column, step * GEMM_DEPTH, full);
        }
    }
}

// Where a consumer's thread is: the rows `row` and row + 8 of the 64, columns 2 quad + {0, 1} of every eight.
struct Seat {
    int consumer, warp, row, quad;
    // Starts and awaits the warpgroup's stores.
    bool leads;

    __device__ __forceinline__ Seat()
        : consumer(threadIdx.x / WARPGROUP - 1),
          warp(threadIdx.x % WARPGROUP / WARP),
          row(warp * 16 + threadIdx.x % WARP / 4),
          quad(threadIdx.x % 4),
          leads(threadIdx.x % WARPGROUP == 0) {}

    // The thread's word of row `row` and the i-th eight columns in a box; row + 8 is 1,024 bytes further.
    __device__ __forceinline__ unsigned* word(unsigned char* box, int i) const {
        return reinterpret_cast<unsigned*>(box + row * 128 + ((i ^ (row & 7)) << 4) + quad * 4);
    }
    __device__ __forceinline__ void sync() const { sync_named(1 + consumer, WARPGROUP); }
};

// The sums of one tile's share; `begun` is called while the first products run.
template <int W, int A, int B, typename M, typename Begun>
__device__ __forceinline__ void multiply(float (&d)[W / 2], const M& memory, Ring<M::STAGES>& ring, const Seat& seat, const Share& s,
                                         Begun begun) {
    // 16 further in k.
    constexpr unsigned A_STEP = A == K_MAJOR ? 32 : 2048, B_STEP = B == K_MAJOR ? 32 : 2048;
    int before = 0;
    for (int step = s.first; step < s.last; step++, ring.next()) {
        const unsigned long long a = operand<A>(memory.a(ring.stage) + seat.consumer * BOX_BYTES, BOX_BYTES);
        const unsigned long long b = operand<B>(memory.b(ring.stage), BOX_BYTES);
        mbarrier_wait(memory.full(ring.stage), ring.parity);
        fence_products();
#pragma unroll
        for (int i = 0; i < GEMM_DEPTH / 16; i++)
            wgmma<W, A, B>(d, advance(a, i * A_STEP), advance(b, i * B_STEP), step > s.first || i > 0);
        commit_products();
        if (step == s.first) {
            begun();
        } else {
            wait_products<1>();
            if (threadIdx.x % WARP == 0) mbarrier_arrive(memory.empty(before));
        }
        before = ring.stage;
    }
    wait_products<0>();
    hold(d);
    if (threadIdx.x % WARP == 0) mbarrier_arrive(memory.empty(before));
}

// The block's work. An epilogue has `Memory`, `begin(share)`, called by all consumers while the first products run, and `finish(d, share)`.
template <int W, int A, int B, typename Epilogue>
__device__ __forceinline__ void gemm(unsigned char* shared, const TensorMap& a, const TensorMap& b, const Problem& p, Epilogue epilogue) {
    using M = typename Epilogue::Memory;
    const M memory{shared};
    if (threadIdx.x == 0) {
        tma_prefetch(a);
        tma_prefetch(b);
        for (int i = 0; i < M::STAGES; i++) {
            mbarrier_init(memory.full(i), 1);
            mbarrier_init(memory.empty(i), CONSUMERS * WARPGROUP / WARP);
        }
        for (int i = 0; i < CONSUMERS * M::SLOTS; i++) mbarrier_init(memory.loaded(0)[i], 1);
        publish_mbarriers();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        give_registers<24>();
        if (threadIdx.x == 0) produce<W, A, B>(memory, a, b, p);
    } else {
        take_registers<240>();
        const Seat seat;
        Ring<M::STAGES> ring;
        epilogue.open(memory, seat);
        float d[W / 2];
        for (unsigned item = blockIdx.x; item < shares<W>(p); item += gridDim.x) {
            const Share s = share<W>(p, item);
            multiply<W, A, B>(d, memory, ring, seat, s, [&] { epilogue.begin(p, seat, s); });
            epilogue.finish(d, p, seat, s);
        }
        // The block's memory may not go before the copy engine has read it, nor a warp before its warpgroup is done with it.
        if (seat.leads) wait_stores_read<0>();
        seat.sync();
    }
}

}  // namespace gemm_sm90
