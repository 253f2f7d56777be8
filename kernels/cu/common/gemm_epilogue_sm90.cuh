// What becomes of a tile's sums (common/gemm_sm90.cuh): a warpgroup turns its 64 rows, 64 columns at a time, into a box of bf16 in
// shared memory, which the copy engine stores. f32 is written from registers: a warp's access covers whole sectors of 32 bytes.
#pragma once
#include "common/gemm_sm90.cuh"

namespace gemm_sm90 {

// The first row of a warpgroup's part of a tile.
__device__ __forceinline__ int row_of(const Seat& seat, const Share& s) { return s.row + 64 * seat.consumer; }

// How many of a warpgroup's boxes have elements of D.
template <int W>
__device__ __forceinline__ int boxes_of(const Problem& p, const Seat& seat, const Share& s) {
    if (static_cast<unsigned>(row_of(seat, s)) >= p.m) return 0;
    const int boxes = static_cast<int>(ceil_div(p.n - s.column, BOX_COLUMNS));
    return boxes < W / BOX_COLUMNS ? boxes : W / BOX_COLUMNS;
}

// Boxes on their way to memory, each in the slot that was free for longest.
template <int SLOTS>
struct Outbox {
    unsigned char* base;
    int next;

    __device__ __forceinline__ unsigned char* slot() const { return base + next * BOX_BYTES; }

    // The slot that all threads have filled goes to the box at (row, column). Then the next slot is free.
    __device__ __forceinline__ void put(const Seat& seat, const TensorMap& map, int row, int column) {
        fence_async();
        if (seat.leads) wait_stores_read<SLOTS - 2>();
        seat.sync();
        if (seat.leads) {
            tma_store(map, row, column, slot());
            commit_stores();
        }
        next = next + 1 == SLOTS ? 0 : next + 1;
    }
};

// Boxes that are loaded, changed in place and stored: a slot for each of a tile.
template <int SLOTS>
struct Exchange {
    unsigned char* base;
    Mbarrier* loaded;
    unsigned parities;

    // By one thread: begins to load `boxes` boxes from (row, column) on.
    __device__ __forceinline__ void load(const TensorMap& map, int row, int column, int boxes) const {
        wait_stores_read<0>();
        for (int i = 0; i < boxes; i++) {
            mbarrier_arrive_expect(loaded[i], BOX_BYTES);
            tma_load(base + i * BOX_BYTES, map, row, column + i * BOX_COLUMNS, loaded[i]);
        }
    }
    __device__ __forceinline__ unsigned char* take(int box) {
        mbarrier_wait(loaded[box], parities >> box & 1);
        parities ^= 1u << box;
        return base + box * BOX_BYTES;
    }
    __device__ __forceinline__ void put(const Seat& seat, const TensorMap& map, int row, int column, int box) const {
        fence_async();
        seat.sync();
        if (!seat.leads) return;
        tma_store(map, row, column, base + box * BOX_BYTES);
        commit_stores();
    }
};

// The bias of a thread's columns of a box, two to a word, loaded before the box is due; zeros where there is none.
struct BoxBias {
    const bf16* bias;
    unsigned at[8] = {};

    __device__ __forceinline__ void load(const Problem& p, const Seat& seat, int column) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const unsigned from = column + 8 * i;
            at[i] = bias && from < p.n ? *reinterpret_cast<const unsigned*>(bias + from + 2 * seat.quad) : 0;
        }
    }
};

// D = sums + bias.
template <int W>
struct Biased {
    using Memory = gemm_sm90::Memory<W, 2, false>;
    const TensorMap& out;
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
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int at = 32 * box + 4 * i;
                const float low = low_bf16(bias.at[i]), high = high_bf16(bias.at[i]);
                unsigned* word = seat.word(boxes.slot(), i);
                word[0] = pack_bf16(d[at] + low, d[at + 1] + high);
                word[256] = pack_bf16(d[at + 2] + low, d[at + 3] + high);
            }
            if (box + 1 < count) bias.load(p, seat, column + BOX_COLUMNS);
            boxes.put(seat, out, row_of(seat, s), column);
        }
    }
};

// D += sums, D of bf16.
template <int W>
struct Added {
    static constexpr int SLOTS = W / BOX_COLUMNS;
    using Memory = gemm_sm90::Memory<W, SLOTS, false>;
    const TensorMap& out;
    Exchange<SLOTS> boxes = {};

    __device__ __forceinline__ void open(const Memory& memory, const Seat& seat) {
        boxes = {memory.slots(seat.consumer), memory.loaded(seat.consumer), 0};
    }
    __device__ __forceinline__ void begin(const Problem& p, const Seat& seat, const Share& s) const {
        if (seat.leads) boxes.load(out, row_of(seat, s), s.column, boxes_of<W>(p, seat, s));
    }

    __device__ __forceinline__ void finish(const float (&d)[W / 2], const Problem& p, const Seat& seat, const Share& s) {
        const int count = boxes_of<W>(p, seat, s);
#pragma unroll
        for (int box = 0; box < SLOTS; box++) {
            if (box >= count) continue;
            unsigned char* slot = boxes.take(box);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int at = 32 * box + 4 * i;
                unsigned* word = seat.word(slot, i);
                word[0] = pack_bf16(low_bf16(word[0]) + d[at], high_bf16(word[0]) + d[at + 1]);
                word[256] = pack_bf16(low_bf16(word[256]) + d[at + 2], high_bf16(word[256]) + d[at + 3]);
            }
            boxes.put(seat, out, row_of(seat, s), s.column + box * BOX_COLUMNS, box);
        }
    }
};

// D = sums, or D += sums, of f32. Each part of k has a D of its own, one after the other.
template <int W>
struct Float {
    using Memory = gemm_sm90::Memory<W, 0, false>;
    float* out;
    bool add;

    __device__ __forceinline__ void open(const Memory&, const Seat&) const {}
    __device__ __forceinline__ void begin(const Problem&, const Seat&, const Share&) const {}

    __device__ __forceinline__ void finish(const float (&d)[W / 2], const Problem& p, const Seat& seat, const Share& s) const {
        constexpr int BATCH = 8;
        const unsigned first = row_of(seat, s) + seat.row;
        float* rows[2];
#pragma unroll
        for (int half = 0; half < 2; half++)
            rows[half] = out + (static_cast<size_t>(s.part) * p.m + first + 8 * half) * p.n + s.column + 2 * seat.quad;
#pragma unroll
        for (int from = 0; from < W / 8; from += BATCH) {
            Vec<float, 2> x[BATCH][2];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int at = 4 * (from + i) + 2 * half;
                    x[i][half] = {{d[at], d[at + 1]}};
                    if (!add || !inside(p, s, first + 8 * half, from + i)) continue;
                    const Vec<float, 2> before = load<2>(rows[half] + 8 * (from + i));
                    x[i][half] = {{before.at[0] + d[at], before.at[1] + d[at + 1]}};
                }
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    if (inside(p, s, first + 8 * half, from + i)) store(rows[half] + 8 * (from + i), x[i][half]);
        }
    }

    // Whether the tile's i-th eight columns of a row are of D.
    static __device__ __forceinline__ bool inside(const Problem& p, const Share& s, unsigned row, int i) {
        return row < p.m && static_cast<unsigned>(s.column + 8 * i) < p.n;
    }
};

}  // namespace gemm_sm90
