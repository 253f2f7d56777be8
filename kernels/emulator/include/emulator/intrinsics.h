// The intrinsics that kernels use, with CUDA's names.
#pragma once
#include "emulator/bfloat16.h"
#include "emulator/runtime.h"

inline void __syncthreads() { emulator::sync_block(); }
inline int __syncthreads_count(int predicate) { return emulator::sync_block_count(predicate != 0); }
inline int __syncthreads_or(int predicate) { return emulator::sync_block_count(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return emulator::sync_block_count(predicate == 0) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::sync_warp(mask); }
inline unsigned __activemask() { return emulator::live_lanes(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { emulator::fail("__trap()"); }

namespace emulator {
template <class T>
constexpr bool shuffles =
    std::is_arithmetic<T>::value || std::is_same<T, __nv_bfloat16>::value || std::is_same<T, __nv_bfloat162>::value;

// Lanes past the segment of `width` lanes keep their own value.
template <class T>
T shuffle(unsigned mask, T value, int source, int first, int last) {
    static_assert(shuffles<T> && sizeof(T) <= 8, "a type that the device's shuffles take");
    const T* lanes = exchange(mask, value);
    return source < first || source > last ? lanes[current->lane] : lanes[source];
}
}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int first = static_cast<int>(emulator::current->lane) & ~(width - 1);
    return emulator::shuffle(mask, value, first | (source & (width - 1)), first, first + width - 1);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const int lane = static_cast<int>(emulator::current->lane), last = lane | (width - 1);
    return emulator::shuffle(mask, value, lane ^ lanes, 0, last);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = static_cast<int>(emulator::current->lane), last = lane | (width - 1);
    return emulator::shuffle(mask, value, lane + static_cast<int>(delta), 0, last);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const int lane = static_cast<int>(emulator::current->lane), first = lane & ~(width - 1);
    return emulator::shuffle(mask, value, lane - static_cast<int>(delta), first, 31);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const unsigned* lanes = emulator::exchange(mask, predicate != 0 ? 1u : 0u);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++) votes |= (mask >> i & lanes[i] & 1u) << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Bits.
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
// Four bytes picked from the eight of b:a; bit 3 of a selector spreads the byte's sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
    unsigned y = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned pick = selector >> (4 * i) & 0xfu, byte = static_cast<unsigned>(bytes >> (8 * (pick & 7u))) & 0xffu;
        y |= ((pick & 8u) == 0 ? byte : byte & 0x80u ? 0xffu : 0u) << (8 * i);
    }
    return y;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    shift &= 31u;
    return shift == 0 ? high : high << shift | low >> (32 - shift);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    shift &= 31u;
    return shift == 0 ? low : low >> shift | high << (32 - shift);
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }
inline long long __double_as_longlong(double x) {
    long long y;
    memcpy(&y, &x, 8);
    return y;
}
inline double __longlong_as_double(long long x) {
    double y;
    memcpy(&y, &x, 8);
    return y;
}

// Arithmetic. The approximate functions of the device are the exact ones here.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
// The C library has some of these names for itself, as functions that nobody calls.
#define __expf(x) expf(x)
#define __exp2f(x) exp2f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __powf(x, y) powf(x, y)
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
// The device's _rn forms are never contracted into a fused multiply-add.
__attribute__((noinline)) inline float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline)) inline float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline)) inline float __fsub_rn(float a, float b) { return a - b; }
__attribute__((noinline)) inline double __dmul_rn(double a, double b) { return a * b; }
__attribute__((noinline)) inline double __dadd_rn(double a, double b) { return a + b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(lrintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline unsigned __float2uint_rn(float x) { return static_cast<unsigned>(llrintf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

#define EMULATOR_MIN_MAX(type)                                \
    inline type min(type a, type b) { return b < a ? b : a; } \
    inline type max(type a, type b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
inline unsigned umin(unsigned a, unsigned b) { return min(a, b); }
inline unsigned umax(unsigned a, unsigned b) { return max(a, b); }
// As fminf: a NaN loses against a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Loads and stores that name a cache policy.
#define EMULATOR_LOAD(name) \
    template <class T>      \
    T name(const T* p) {    \
        return *p;          \
    }
#define EMULATOR_STORE(name) \
    template <class T>       \
    void name(T* p, T x) {   \
        *p = x;              \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_LOAD
#undef EMULATOR_STORE

inline size_t __cvta_generic_to_shared(const void* p) { return emulator::shared_address(p); }
