// CUDA's keywords and vector types.
#pragma once
#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmath>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ static
#define __align__(n) alignas(n)

// A thread of the device has no stack to unwind and no errno: an assertion names kernel, block and thread.
#undef assert
#define assert(condition) \
    ((condition) ? void() : ::emulator::fail("assertion failed: %s (%s:%d)", #condition, __FILE__, __LINE__))

namespace emulator {
[[noreturn]] __attribute__((visibility("default"), format(printf, 1, 2))) void fail(const char* format, ...);
}

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMULATOR_VECTOR2(name, type)        \
    struct alignas(2 * sizeof(type)) name { \
        type x, y;                          \
    };                                      \
    inline constexpr name make_##name(type x, type y) { return {x, y}; }
#define EMULATOR_VECTOR4(name, type)                                     \
    struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name { \
        type x, y, z, w;                                                 \
    };                                                                   \
    inline constexpr name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(char2, signed char)
EMULATOR_VECTOR2(uchar2, unsigned char)
EMULATOR_VECTOR2(short2, short)
EMULATOR_VECTOR2(ushort2, unsigned short)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR2(double2, double)
EMULATOR_VECTOR2(longlong2, long long)
EMULATOR_VECTOR2(ulonglong2, unsigned long long)
EMULATOR_VECTOR4(char4, signed char)
EMULATOR_VECTOR4(uchar4, unsigned char)
EMULATOR_VECTOR4(short4, short)
EMULATOR_VECTOR4(ushort4, unsigned short)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR4(uint4, unsigned)
EMULATOR_VECTOR4(float4, float)
#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR4
