// Kernels that test the emulator itself: some are right, most are wrong on purpose.
#include "common/reduce.cuh"

// y[i] = a * x[i] + y[i]
extern "C" __global__ void test_axpy(float* y, const float* x, float a, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += a * x[i];
}
EXPORT(test_axpy)
