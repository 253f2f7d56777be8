// Products of a warpgroup with one operand or both in shared memory (wgmma, sm_90a): D [64, N] += A [64, 16] B [16, N], bf16 with
// sums in f32. A warpgroup is four warps, the first one's number divisible by four; all its threads call each function. A
// product runs beside the threads: until wait_products covers it nobody touches its D, its A in registers, or the shared memory.
//
// With warp = index in the warpgroup, row = lane / 4 and quad = lane % 4, a thread holds
//   of D [64, N]: d[4 i + {0, 1}] (16 warp + row, 8 i + 2 quad + {0, 1}), d[4 i + {2, 3}] rows + 8,
//   of A [64, 16]: a Fragment of its warp's 16 rows, as of mma.cuh.
//
// Shared memory holds tiles as TMA's 128-byte swizzle leaves them: rows of 64 elements, 8 rows make 1,024 bytes, which they
// are aligned to. An operand's tile is either
//   K_MAJOR: row = row of A or column of B, the 64 elements are of K; 16 elements further in K is 32 bytes further, or
//   MN_MAJOR: row = index of K, the 64 elements are rows of A or columns of B; 16 further in K is 16 rows, 2,048 bytes further.
// `operand` makes the 64 bits that describe one; `stride` is how many bytes the next 64 rows of A or columns of B are further on
// in MN_MAJOR. (PTX ISA, "Asynchronous warpgroup level matrix instructions".)
#pragma once
#include "common/mbarrier.cuh"
#include "common/mma.cuh"

constexpr int K_MAJOR = 0, MN_MAJOR = 1;

// The operand that begins at `tile`, and `bytes` further.
template <int MAJOR>
__device__ __forceinline__ unsigned long long operand(const void* tile, unsigned stride = 0) {
    // 16-byte units: address from bit 0, leading offset from bit 16, stride offset (of 8 rows) from bit 32; 1 << 62: 128-byte swizzle.
    const unsigned leading = MAJOR == MN_MAJOR ? stride : 16;
    return static_cast<unsigned long long>(1) << 62 | static_cast<unsigned long long>(1024 >> 4) << 32 |
           static_cast<unsigned long long>((leading & 0x3ffff) >> 4) << 16 | (shared_address(tile) & 0x3ffff) >> 4;
}
__device__ __forceinline__ unsigned long long advance(unsigned long long operand, unsigned bytes) { return operand + (bytes >> 4); }

// Before the first product, and before one whose D or A the threads wrote since: makes the registers known.
__device__ __forceinline__ void fence_products() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emulator::wgmma_fence();
#endif
}

// Ends the group of the products so far.
__device__ __forceinline__ void commit_products() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulator::wgmma_commit();
#endif
}

// Waits until at most PENDING groups, the latest, are unfinished.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#else
    emulator::wgmma_wait(PENDING);
#endif
}

// Keeps the compiler from moving reads or writes of registers of a running product over this line.
template <int N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
#else
    (void)d;
#endif
}

// More or fewer registers for the threads of this warpgroup (a multiple of 8); the block was compiled for an equal share each.
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#else
    emulator::set_registers(REGISTERS, true);
#endif
}
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
#ifdef __CUDACC__
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#else
    emulator::set_registers(REGISTERS, false);
#endif
}

#ifdef __CUDACC__
#define WGMMA_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D16(d, i) WGMMA_D4(d, i), WGMMA_D4(d, i + 4), WGMMA_D4(d, i + 8), WGMMA_D4(d, i + 12)
#define WGMMA_D32(d, i) WGMMA_D16(d, i), WGMMA_D16(d, i + 16)
#define WGMMA_D64(d, i) WGMMA_D32(d, i), WGMMA_D32(d, i + 32)
#define WGMMA_D128(d, i) WGMMA_D64(d, i), WGMMA_D64(d, i + 64)
#define WGMMA_LIST32 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA_LIST64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, " \
    "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define WGMMA_LIST128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, " \
    "%45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, " \
    "%67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, " \
    "%89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, " \
    "%109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
    "%127}"

// SHARED: both operands in shared memory; ROW: A in registers. Operands follow the N / 2 registers of D.
#define WGMMA_SHARED64 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_LIST32 \
    ", %32, %33, p, 1, 1, %35, %36;\n}"
#define WGMMA_ROWS64 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_LIST32 \
    ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
#define WGMMA_SHARED128 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WGMMA_LIST64 \
    ", %64, %65, p, 1, 1, %67, %68;\n}"
#define WGMMA_ROWS128 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WGMMA_LIST64 \
    ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
#define WGMMA_SHARED256 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " WGMMA_LIST128 \
    ", %128, %129, p, 1, 1, %131, %132;\n}"
#define WGMMA_ROWS256 \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " WGMMA_LIST128 \
    ", {%128, %129, %130, %131}, %132, p, 1, 1, %134;\n}"
#endif

// d = a b, plus d if `add`. N = 64, 128 or 256.
template <int N, int A, int B>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], unsigned long long a, unsigned long long b, bool add = true) {
    static_assert(N == 64 || N == 128 || N == 256, "a width there is an instruction for");
#ifdef __CUDACC__
    if constexpr (N == 64)
        asm volatile(WGMMA_SHARED64 : WGMMA_D32(d, 0) : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(A), "n"(B));
    else if constexpr (N == 128)
        asm volatile(WGMMA_SHARED128 : WGMMA_D64(d, 0) : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(A), "n"(B));
    else if constexpr (N == 256)
        asm volatile(WGMMA_SHARED256 : WGMMA_D128(d, 0) : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(A), "n"(B));
#else
    emulator::wgmma(d, N, nullptr, a, b, add, A == MN_MAJOR, B == MN_MAJOR);
#endif
}

// The same with A in registers.
template <int N, int B>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const Fragment& a, unsigned long long b, bool add = true) {
    static_assert(N == 64 || N == 128 || N == 256, "a width there is an instruction for");
#ifdef __CUDACC__
    if constexpr (N == 64)
        asm volatile(WGMMA_ROWS64
                     : WGMMA_D32(d, 0)
                     : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "l"(b), "r"(static_cast<int>(add)), "n"(B));
    else if constexpr (N == 128)
        asm volatile(WGMMA_ROWS128
                     : WGMMA_D64(d, 0)
                     : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "l"(b), "r"(static_cast<int>(add)), "n"(B));
    else if constexpr (N == 256)
        asm volatile(WGMMA_ROWS256
                     : WGMMA_D128(d, 0)
                     : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "l"(b), "r"(static_cast<int>(add)), "n"(B));
#else
    emulator::wgmma(d, N, a.at, 0, b, add, false, B == MN_MAJOR);
#endif
}
