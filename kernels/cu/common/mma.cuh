// Warp-wide matrix products of bf16 with sums in f32 (mma.sync m16n8k16, sm_80), and the loads of their operands. All lanes of
// the warp call each function. With row = lane / 4 and quad = lane % 4, a lane holds
//   of A [16, 16]: at[0] (row, 2 quad + {0, 1}), at[1] rows + 8, at[2] columns + 8, at[3] both,
//   of B [16, 8]:  b0 rows 2 quad + {0, 1} of column `row`, b1 rows + 8,
//   of C [16, 8]:  at[0], at[1] (row, 2 quad + {0, 1}), at[2], at[3] rows + 8,
// two bf16 to a word, the lower index in the lower half. So two neighbouring C tiles, rounded, are an A.
#pragma once
#include "common/base.cuh"

// Four words, of A or of two B.
struct Fragment {
    unsigned at[4];
};

struct Accumulator {
    float at[4];
};

// `low` in the lower half.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
#ifdef __CUDACC__
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return static_cast<unsigned>(__bfloat16_as_ushort(narrow<bf16>(high))) << 16 | __bfloat16_as_ushort(narrow<bf16>(low));
#endif
}

__device__ __forceinline__ float low_bf16(unsigned packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_bf16(unsigned packed) { return __uint_as_float(packed & 0xffff0000u); }

// c += a b
__device__ __forceinline__ void mma(Accumulator& c, const Fragment& a, unsigned b0, unsigned b1) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.at[0]), "+f"(c.at[1]), "+f"(c.at[2]), "+f"(c.at[3])
        : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
#else
    struct Operands {
        unsigned a[4], b[2];
    };
    const Operands* lanes = emulator::exchange(ALL_LANES, Operands{{a.at[0], a.at[1], a.at[2], a.at[3]}, {b0, b1}});
    const unsigned row = emulator::current->lane / 4, quad = emulator::current->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        const Operands *left = lanes + row * 4, *right = lanes + (2 * quad + i % 2) * 4;
        for (unsigned k = 0; k < 16; k += 2) {
            const unsigned x = left[k % 8 / 2].a[i / 2 + k / 8 * 2], y = right[k % 8 / 2].b[k / 8];
            c.at[i] += low_bf16(x) * low_bf16(y) + high_bf16(x) * high_bf16(y);
        }
    }
#endif
}

// Four 8x8 matrices of bf16 from shared memory: lane 8 m + r gives the address of row r of matrix m, 16 bytes. Word m of a
// lane is (row, 2 quad + {0, 1}) of matrix m.
__device__ __forceinline__ Fragment load_matrices(const void* row) {
    Fragment f;
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    const Fragment* rows = emulator::exchange(ALL_LANES, *static_cast<const Fragment*>(row));
    for (unsigned m = 0; m < 4; m++) f.at[m] = rows[8 * m + emulator::current->lane / 4].at[emulator::current->lane % 4];
#endif
    return f;
}

// The same, each matrix transposed: word m of a lane is (2 quad + {0, 1}, row) of matrix m.
__device__ __forceinline__ Fragment load_matrices_transposed(const void* row) {
    Fragment f;
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(f.at[0]), "=r"(f.at[1]), "=r"(f.at[2]), "=r"(f.at[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    const Fragment* rows = emulator::exchange(ALL_LANES, *static_cast<const Fragment*>(row));
    const unsigned column = emulator::current->lane / 4, first = 2 * (emulator::current->lane % 4);
    for (unsigned m = 0; m < 4; m++) {
        const auto half = [&](unsigned r) { return rows[8 * m + r].at[column / 2] >> (column % 2 * 16) & 0xffffu; };
        f.at[m] = half(first) | half(first + 1) << 16;
    }
#endif
    return f;
}
