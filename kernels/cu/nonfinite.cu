// Where a gradient is not finite.
//
//   place [2] = number of the first stretch of x [count] with an element that is not finite, and the element's number in
//               the stretch; -1 and -1 if there is none, or if norm [1] is finite
//
// One block; a stretch is 2^14 elements, so that both numbers are exact in f32. Where the norm is finite, which is every
// step that goes well, one number is read and the launch is all it costs. Else stretch after stretch is read, 64 KiB each,
// until one is found: at most 4 * count bytes at the speed of one multiprocessor.
#include "common/base.cuh"

constexpr unsigned STRETCH = 1u << 14;
constexpr unsigned THREADS = 512;

__device__ __forceinline__ bool is_bad(float x) { return !(fabsf(x) <= 3.402823466e38f); }

extern "C" __global__ void __launch_bounds__(THREADS)
    find_nonfinite_f32(float* __restrict__ place, const float* __restrict__ x, const float* __restrict__ norm,
                       unsigned count) {
    SHARED(unsigned, firsts, [THREADS / WARP]);
    const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float stretch = -1.0f, element = -1.0f;
    // All threads read the same norm and the same sums, so that all take the same way.
    const unsigned stretches = is_bad(norm[0]) ? (count + STRETCH - 1) / STRETCH : 0;
    for (unsigned s = 0; s < stretches; s++) {
        const float* part = x + static_cast<size_t>(s) * STRETCH;
        const unsigned length = min(STRETCH, count - s * STRETCH);
        unsigned first = STRETCH;
        for (unsigned i = threadIdx.x; i < length; i += THREADS) {
            if (is_bad(part[i])) first = min(first, i);
        }
#pragma unroll
        for (int offset = WARP / 2; offset > 0; offset /= 2) {
            first = min(first, __shfl_xor_sync(ALL_LANES, first, offset));
        }
        __syncthreads();  // the numbers of the stretch before have been read
        if (lane == 0) firsts[warp] = first;
        __syncthreads();
        for (unsigned i = 0; i < THREADS / WARP; i++) first = min(first, firsts[i]);
        if (first < STRETCH) {
            stretch = static_cast<float>(s);
            element = static_cast<float>(first);
            break;
        }
    }
    if (threadIdx.x == 0) {
        place[0] = stretch;
        place[1] = element;
    }
}
EXPORT(find_nonfinite_f32)
