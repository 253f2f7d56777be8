// D = alpha op(A) op(B) + beta C + bias, column-major, in f32.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct Matrix {
    void* at;
    bool bf16;
    size_t rows, cols, ld;
    size_t element() const { return bf16 ? 2 : 4; }
    size_t bytes() const { return rows == 0 || cols == 0 ? 0 : ((cols - 1) * ld + rows) * element(); }
};

struct Product {
    Matrix a, b, c, d;
    bool transpose_a, transpose_b, tf32;
    float alpha, beta;
    const void* bias;  // one number a row of D, or null
    // Into so many parts the sum over k is cut: each is summed, then the parts are added in order.
    int parts;
};

void multiply(const Product& product);
