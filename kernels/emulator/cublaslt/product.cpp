// Plain blocked loops: panels of 16 rows of A and 4 columns of B, widened to f32, whose 64 sums stay in registers.
#include "product.h"

#include <string.h>

#include <vector>

namespace {

constexpr size_t MR = 16, NR = 4, LANES = 8;
using Lanes = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

float read(const Matrix& m, size_t i) {
    if (!m.bf16) return static_cast<const float*>(m.at)[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(m.at)[i]) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

void write(const Matrix& m, size_t i, float x) {
    if (!m.bf16) {
        static_cast<float*>(m.at)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    static_cast<uint16_t*>(m.at)[i] = nan ? 0x7fff : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Ten bits of mantissa, to nearest, as the tensor cores' TF32 inputs have them.
float to_tf32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & 0xffffe000u;
    memcpy(&x, &bits, 4);
    return x;
}

// Panels of `width` rows of op(M) (or columns: `along_rows` says which index runs over `count`), k after k; zeros past the
// end.
std::vector<float> pack(const Matrix& m, bool along_rows, size_t count, size_t depth, size_t width, bool tf32) {
    const size_t panels = (count + width - 1) / width;
    std::vector<float> packed(panels * width * depth, 0.0f);
    for (size_t i = 0; i < count; i++) {
        float* panel = packed.data() + i / width * width * depth + i % width;
        for (size_t l = 0; l < depth; l++) {
            const float x = read(m, along_rows ? i + l * m.ld : l + i * m.ld);
            panel[l * width] = tf32 ? to_tf32(x) : x;
        }
    }
    return packed;
}

// sums[j][i] += a[l][i] * b[l][j] for l in [begin, end).
void accumulate(Lanes (&sums)[NR][MR / LANES], const float* a, const float* b, size_t begin, size_t end) {
    Lanes local[NR][MR / LANES] = {};
    for (size_t l = begin; l < end; l++) {
        const Lanes* column = reinterpret_cast<const Lanes*>(a + l * MR);
        for (size_t j = 0; j < NR; j++)
            for (size_t v = 0; v < MR / LANES; v++) local[j][v] += column[v] * b[l * NR + j];
    }
    for (size_t j = 0; j < NR; j++)
        for (size_t v = 0; v < MR / LANES; v++) sums[j][v] += local[j][v];
}

void finish(const Product& p, const Lanes (&sums)[NR][MR / LANES], size_t row, size_t col) {
    const Matrix bias{const_cast<void*>(p.bias), p.d.bf16, p.d.rows, 1, p.d.rows};
    for (size_t j = 0; j < NR && col + j < p.d.cols; j++)
        for (size_t i = 0; i < MR && row + i < p.d.rows; i++) {
            float x = p.alpha * sums[j][i / LANES][i % LANES];
            // As the library: C is not read where beta is 0.
            if (p.beta != 0.0f) x += p.beta * read(p.c, row + i + (col + j) * p.c.ld);
            if (p.bias != nullptr) x += read(bias, row + i);
            write(p.d, row + i + (col + j) * p.d.ld, x);
        }
}

}  // namespace

void multiply(const Product& p) {
    const size_t rows = p.d.rows, cols = p.d.cols, depth = p.transpose_a ? p.a.rows : p.a.cols;
    const std::vector<float> a = pack(p.a, !p.transpose_a, rows, depth, MR, p.tf32);
    const std::vector<float> b = pack(p.b, p.transpose_b, cols, depth, NR, p.tf32);
    const size_t parts = static_cast<size_t>(p.parts), part = (depth + parts - 1) / parts;
    for (size_t col = 0; col < cols; col += NR)
        for (size_t row = 0; row < rows; row += MR) {
            Lanes sums[NR][MR / LANES] = {};
            for (size_t begin = 0; begin < depth; begin += part)
                accumulate(sums, a.data() + row * depth, b.data() + col * depth, begin,
                           begin + part < depth ? begin + part : depth);
            finish(p, sums, row, col);
        }
}
