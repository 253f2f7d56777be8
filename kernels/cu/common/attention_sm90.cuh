// What the attention kernels for sm_90a share: the ring of tiles between the copy engine and the warpgroups, and dropout as
// factors.
//
// A tile is 64 rows of a head as TMA's 128-byte swizzle leaves them, 8,192 bytes: the layout of common/attention_mma.cuh.
#pragma once
#include "common/attention_mma.cuh"
#include "common/tma.cuh"
#include "common/wgmma.cuh"

// Philox's keys of its ten rounds, made by the host: as parameters of the kernel they are operands of its instructions.
struct RoundKeys {
    unsigned low[10], high[10];
};

namespace attention {

constexpr int WARPGROUP = 128;
static_assert(TILE_BYTES == 8192 && ROW_BYTES == 128, "a box of TMA's 128-byte swizzle");

// The same value in all lanes, known to the compiler to be so: descriptors and addresses of it need no vector registers.
__device__ __forceinline__ unsigned uniform(unsigned x) { return __shfl_sync(ALL_LANES, x, 0); }

// Tiles that a producer fills and consumers read, in the order of their numbers from 0; tile n lies at place n % STAGES.
template <int STAGES>
struct Ring {
    Mbarrier full[STAGES], empty[STAGES];

    static __device__ __forceinline__ unsigned place(unsigned n) { return n % STAGES; }
    static __device__ __forceinline__ unsigned parity(unsigned n) { return n / STAGES % 2; }

    // By one thread, before the block's first barrier.
    __device__ __forceinline__ void init(unsigned releases) {
        for (int i = 0; i < STAGES; i++) mbarrier_init(full[i], 1), mbarrier_init(empty[i], releases);
    }
    // The producer: place n is free; the copies into it, `bytes` in all, then name the barrier of this number.
    __device__ __forceinline__ Mbarrier& fill(unsigned n, unsigned bytes) {
        wait_empty(n);
        mbarrier_arrive_expect(full[place(n)], bytes);
        return full[place(n)];
    }
    __device__ __forceinline__ void wait_empty(unsigned n) { mbarrier_wait(empty[place(n)], parity(n) ^ 1); }
    __device__ __forceinline__ void wait_full(unsigned n) { mbarrier_wait(full[place(n)], parity(n)); }
    __device__ __forceinline__ void release(unsigned n) { mbarrier_arrive(empty[place(n)]); }
};

// As attention_draw() of common/philox.cuh.
__device__ __forceinline__ Philox attention_draw(const Dropout& d, const RoundKeys& keys, unsigned row_key, unsigned head, unsigned block,
                                                 unsigned quad) {
    unsigned c0 = head << 16 | (block * 4 + quad), c1 = row_key, c2 = d.site, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long even = 0xD2511F53ull * c0, odd = 0xCD9E8D57ull * c2;
        c0 = static_cast<unsigned>(odd >> 32) ^ c1 ^ keys.low[round], c1 = static_cast<unsigned>(odd);
        c2 = static_cast<unsigned>(even >> 32) ^ c3 ^ keys.high[round], c3 = static_cast<unsigned>(even);
    }
    return {{c0, c1, c2, c3}};
}

// Weights are multiplied by 0 or by 2^-7, which costs no precision.
constexpr float KEPT_FACTOR = 1.0f / 128;

// What bytes of a draw are compared by.
struct KeptBounds {
    unsigned base, limit;

    // The threshold is from 1 to 255. Were the base known to be a constant, it would be copied to a register at every use.
    __device__ __forceinline__ explicit KeptBounds(unsigned threshold)
        : base(0x64646464u + (threshold >> 8)), limit(0xe400e400u | (threshold - 1) * 0x10001u) {}
};

// For the lower or the upper two bytes of a word of a draw, as two bf16: 2^-7 where the byte is at least the threshold, else 0.
// 0x64 above the byte is the f16 1024 + byte; the limit is minus (1023 + threshold), twice. Their sum, clipped to [0, 1], is 1 or 0,
// and the bits of f16's 1 are those of bf16's 2^-7. This leaves one instruction to the integer units, which Philox keeps busy.
template <int HALF>
__device__ __forceinline__ unsigned kept_factors(unsigned word, const KeptBounds& bounds) {
#ifdef __CUDACC__
    unsigned factors;
    asm("{\n.reg .b32 bytes;\n"
        "prmt.b32 bytes, %1, %3, %4;\n"
        "add.rn.sat.f16x2 %0, bytes, %2;\n}"
        : "=r"(factors)
        : "r"(word), "r"(bounds.limit), "r"(bounds.base), "n"(HALF == 0 ? 0x4140 : 0x4342));
    return factors;
#else
    const unsigned threshold = (bounds.limit & 0xffu) + 1, low = word >> (16 * HALF) & 0xffu, high = word >> (16 * HALF + 8) & 0xffu;
    return (low >= threshold ? 0x3c00u : 0u) | (high >= threshold ? 0x3c000000u : 0u);
#endif
}

// Products of two pairs of bf16.
__device__ __forceinline__ unsigned multiply_bf16(unsigned x, unsigned y) {
#ifdef __CUDACC__
    unsigned product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(x), "r"(y));
    return product;
#else
    return pack_bf16(low_bf16(x) * low_bf16(y), high_bf16(x) * high_bf16(y));
#endif
}

}  // namespace attention
