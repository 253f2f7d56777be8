// The arithmetic of one wgmma: operands from shared memory or registers, sums in f32.
#pragma once

namespace emulator {

constexpr int ROWS = 64, DEPTH = 16, MAX_COLUMNS = 256;

// a[row][k] of an operand A that a descriptor describes, b[k][column] of an operand B of n columns.
void decode_a(unsigned long long descriptor, bool mn_major, unsigned fences, float (&a)[ROWS][DEPTH]);
void decode_b(unsigned long long descriptor, bool mn_major, unsigned fences, int n, float (&b)[DEPTH][MAX_COLUMNS]);
// Reports a descriptor that no operand has.
void check_descriptor(unsigned long long descriptor, const char* which);

// d [64, n] += a b, in the order of k. Rows of d are n numbers.
void multiply(float* d, const float (&a)[ROWS][DEPTH], const float (&b)[DEPTH][MAX_COLUMNS], int n);

inline float widen_bf16(unsigned short bits) {
    const unsigned wide = static_cast<unsigned>(bits) << 16;
    float x;
    __builtin_memcpy(&x, &wide, 4);
    return x;
}

}  // namespace emulator
