// Kernels that test the emulator itself: some are right, most are wrong on purpose.
#include "common/reduce.cuh"

// y[i] = a * x[i] + y[i]
extern "C" __global__ void test_axpy(float* y, const float* x, float a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
EXPORT(test_axpy)

// Counts how often each block and thread ran, in three dimensions.
extern "C" __global__ void test_visit(int* visits) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    visits[block * static_cast<int>(blockDim.x * blockDim.y * blockDim.z) + thread] += 1;
}
EXPORT(test_visit)

// The order in which threads ran: what each took from a counter in shared memory.
extern "C" __global__ void test_order(int* order) {
    SHARED(int, next, [1]);
    if (threadIdx.x == 0) next[0] = 0;
    __syncthreads();
    order[blockIdx.x * blockDim.x + threadIdx.x] = next[0]++;
}
EXPORT(test_order)

// Reverses 256 numbers through shared memory; right only with the barrier.
extern "C" __global__ void test_reverse(float* y, const float* x, int barrier) {
    SHARED(float, tile, [256]);
    tile[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    if (barrier) __syncthreads();
    y[blockIdx.x * 256 + threadIdx.x] = tile[255 - threadIdx.x];
}
EXPORT(test_reverse)

// Two arrays by turns: between a warp's barriers other warps may be far behind. Right only with the second barrier.
extern "C" __global__ void test_rounds(float* y, const float* x, int rounds, int barrier) {
    SHARED(float, tile, [256]);
    float sum = 0.0f;
    for (int r = 0; r < rounds; r++) {
        tile[threadIdx.x] = x[threadIdx.x] + r;
        __syncthreads();
        sum += tile[(threadIdx.x + 32) % 256];
        if (barrier) __syncthreads();
    }
    y[blockIdx.x * 256 + threadIdx.x] = sum;
}
EXPORT(test_rounds)

// What fresh shared memory holds.
extern "C" __global__ void test_poison(float* y) {
    SHARED(float, fixed, [64]);
    SHARED_DYNAMIC(float, dynamic);
    const int i = blockIdx.x * 64 + threadIdx.x;
    y[2 * i] = fixed[threadIdx.x];
    y[2 * i + 1] = dynamic[threadIdx.x];
    fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
}
EXPORT(test_poison)

// Sums over warps and the block.
extern "C" __global__ void test_sums(float* y, const float* x) {
    SHARED(float, partials, [32]);
    const float v = x[threadIdx.x];
    y[3 * threadIdx.x] = warp_sum(v);
    y[3 * threadIdx.x + 1] = warp_max(v);
    y[3 * threadIdx.x + 2] = block_sum(v, partials);
}
EXPORT(test_sums)

// Shuffles and votes of one warp: nine numbers a lane.
extern "C" __global__ void test_shuffles(int* y) {
    const int lane = threadIdx.x;
    int* out = y + 9 * lane;
    out[0] = __shfl_sync(ALL_LANES, lane, 5);
    out[1] = __shfl_sync(ALL_LANES, lane, lane + 3, 8);
    out[2] = __shfl_xor_sync(ALL_LANES, lane, 9);
    out[3] = __shfl_down_sync(ALL_LANES, lane, 4);
    out[4] = __shfl_up_sync(ALL_LANES, lane, 4, 16);
    out[5] = static_cast<int>(__ballot_sync(ALL_LANES, lane % 3 == 0));
    out[6] = __any_sync(ALL_LANES, lane == 31) + 2 * __all_sync(ALL_LANES, lane < 31);
    // Halves of a warp meet apart from each other.
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    int sum = lane;
    for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(half, sum, offset);
    if (lane >= 16) sum = __shfl_sync(half, sum + lane, 16);
    out[7] = sum;
    out[8] = static_cast<int>(__shfl_down_sync(ALL_LANES, static_cast<double>(lane), 1, 8));
}
EXPORT(test_shuffles)

// Threads from `n` on leave early; the others still meet.
extern "C" __global__ void test_early_exit(int* y, int n) {
    SHARED(int, tile, [128]);
    if (static_cast<int>(threadIdx.x) >= n) return;
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = tile[n - 1 - threadIdx.x] + 1000 * __syncthreads_count(threadIdx.x % 2 == 0);
}
EXPORT(test_early_exit)

// Producers and consumers at barriers of their own: warps 0 and 1 fill, warps 2 and 3 read.
extern "C" __global__ void test_named_barriers(int* y) {
    SHARED(int, tile, [64]);
    const int i = threadIdx.x % 64;
    for (int round = 0; round < 3; round++) {
        if (threadIdx.x < 64) {
            if (round > 0) emulator::sync_named(2, 128);
            tile[i] = 100 * round + i;
            emulator::arrive_named(1, 128);
        } else {
            emulator::sync_named(1, 128);
            y[64 * round + i] = tile[63 - i];
            if (round < 2) emulator::arrive_named(2, 128);
        }
    }
}
EXPORT(test_named_barriers)

// Copies through shared memory, four numbers a thread in two groups. `keep` groups may be unfinished when it reads.
extern "C" __global__ void test_async_copy(float* y, const float* x, int n, int keep) {
    SHARED(float, tile, [2][64 * 4]);
    for (int g = 0; g < 2; g++) {
        const int i = (g * 64 + static_cast<int>(threadIdx.x)) * 4;
        emulator::async_copy(&tile[g][threadIdx.x * 4], x + (i < n ? i : 0), 16, i >= n);
        emulator::async_commit();
    }
    emulator::async_wait(keep);
    __syncthreads();
    for (int g = 0; g < 2; g++)
        for (int j = 0; j < 4; j++) y[g * 256 + threadIdx.x * 4 + j] = tile[g][threadIdx.x * 4 + j];
}
EXPORT(test_async_copy)

// Rounds to bf16 and widens again.
extern "C" __global__ void test_bf16(unsigned short* rounded, float* widened, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    rounded[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
    widened[i] = __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(i)));
}
EXPORT(test_bf16)

// A struct by value, and parameters of several sizes.
struct TestParameters {
    const float* x;
    int offset;
    double scale;
};
extern "C" __global__ void test_parameters(double* y, char add, TestParameters p, short subtract) {
    y[threadIdx.x] = p.x[threadIdx.x + p.offset] * p.scale + add - subtract;
}
EXPORT(test_parameters)

// What goes wrong, by number.
extern "C" __global__ void test_wrong(float* y, int what, int n) {
    SHARED(float, tile, [64]);
    SHARED(float, after, [64]);
    SHARED_DYNAMIC(float, dynamic);
    after[threadIdx.x % 64] = 0.0f;
    const int t = threadIdx.x;
    if (what == 0 && t == 3) y[n] = 1.0f;
    if (what == 1 && t == 3) y[-1 - n] = 1.0f;
    if (what == 2) __syncwarp(t == 0 ? 3u : ~3u);
    if (what == 3 && t != 7) __syncwarp();
    if (what == 4) y[t] = load<4>(y + 1).at[0];
    if (what == 5) tile[t + n] = 1.0f;
    if (what == 6) {
        float* p = tile;
        if (t == 0) p[64] = 1.0f;
    }
    if (what == 7) assert(t != 5);
    if (what == 8 && t == 9) __trap();
    if (what == 9 && t == 0) dynamic[n] = 1.0f;
    if (what == 10) y[0] = static_cast<float>(n / (n - 8));
    if (what == 11 && t < 32) emulator::sync_named(1, 64);
    if (what == 12) y[t] = *reinterpret_cast<const float*>(static_cast<uintptr_t>(n));
    if (what == 13 && t == 0) __syncwarp(2u);
    __syncthreads();
}
EXPORT(test_wrong)
