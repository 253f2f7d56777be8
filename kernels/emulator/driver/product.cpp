// A descriptor says where 8 x 8 parts of an operand lie (PTX ISA, "Matrix Descriptor"). In units of 16 bytes, of 8 elements, and
// with W = 1, 2, 4, 8 of them in a row of the swizzle's pattern:
//   K-major:  element (i, k) in unit (i % 8) W + (k / 8) of group i / 8, groups `stride` bytes apart;
//             without swizzle k / 8 counts `leading` bytes.
//   MN-major: element (i, k) in unit (i / 8) % W + (k % 8) W of group (i / 8 / W, k / 8), which are `leading` bytes apart in
//             the first and `stride` in the second; without swizzle the other way round.
// Then the unit's number in its row of 128 bytes is changed by the row's, both taken from the address.
#include "product.h"

#include <string.h>

#include "emulator/types.h"
#include "proxy.h"
#include "tensor_map.h"

namespace emulator {
namespace {

constexpr unsigned SPACE_MASK = (256 << 10) - 1;

struct Operand {
    unsigned start, leading, stride, swizzle, width;
};

Operand parse(unsigned long long d) {
    const auto field = [d](int bit) { return static_cast<unsigned>(d >> bit & 0x3fff) << 4; };
    // 1 is a pattern of 128 bytes, 2 of 64, 3 of 32.
    const unsigned mode = static_cast<unsigned>(d >> 62), swizzle = mode == 0 ? 0 : 4 - mode;
    return {field(0), field(16), field(32), swizzle, 1u << swizzle};
}

// The 8 elements of a unit, `offset` bytes after the operand's start.
void read_unit(const Operand& o, unsigned offset, unsigned fences, const char* what, float (&x)[8]) {
    const unsigned char* p = proxy_read(swizzled((o.start + offset) & SPACE_MASK, o.swizzle), fences, what);
    unsigned short bits[8];
    memcpy(bits, p, sizeof bits);
    for (int i = 0; i < 8; i++) x[i] = widen_bf16(bits[i]);
}

unsigned k_major(const Operand& o, unsigned i, unsigned k8) {
    return i % 8 * o.width * 16 + i / 8 * o.stride + k8 * (o.swizzle == 0 ? o.leading : 16);
}
unsigned mn_major(const Operand& o, unsigned i8, unsigned k) {
    const unsigned along = o.swizzle == 0 ? o.stride : o.leading, deep = o.swizzle == 0 ? o.leading : o.stride;
    return i8 % o.width * 16 + i8 / o.width * along + k % 8 * o.width * 16 + k / 8 * deep;
}

// Four rows and sixteen columns at once: their sums stay in registers.
constexpr int MR = 4, LANES = 8;
using Lanes = float __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

template <int VECTORS>
void multiply_block(float* d, const float (*a)[DEPTH], const float* b, int n) {
    Lanes sums[MR][VECTORS];
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < VECTORS; v++) sums[i][v] = *reinterpret_cast<const Lanes*>(d + i * n + v * LANES);
    for (int k = 0; k < DEPTH; k++) {
        const Lanes* row = reinterpret_cast<const Lanes*>(b + k * MAX_COLUMNS);
        for (int i = 0; i < MR; i++)
            for (int v = 0; v < VECTORS; v++) sums[i][v] += row[v] * a[i][k];
    }
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < VECTORS; v++) *reinterpret_cast<Lanes*>(d + i * n + v * LANES) = sums[i][v];
}

}  // namespace

void check_descriptor(unsigned long long d, const char* which) {
    constexpr unsigned long long KNOWN = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if ((d & ~KNOWN) != 0) fail("operand %s is described by %#llx: bits %#llx mean nothing", which, d, d & ~KNOWN);
    const Operand o = parse(d);
    const unsigned row = o.start >> 7 & (o.width - 1);
    if ((d >> 49 & 7) != 0 || (o.swizzle != 0 && row != 0))
        fail("operand %s begins at shared address %#x, in row %u of a swizzle's pattern: it begins in row 0", which, o.start,
             row);
}

void decode_a(unsigned long long descriptor, bool is_mn_major, unsigned fences, float (&a)[ROWS][DEPTH]) {
    const Operand o = parse(descriptor);
    float x[8];
    if (!is_mn_major) {
        for (unsigned i = 0; i < ROWS; i++)
            for (unsigned k8 = 0; k8 < DEPTH / 8; k8++) {
                read_unit(o, k_major(o, i, k8), fences, "a product's A", x);
                memcpy(&a[i][k8 * 8], x, sizeof x);
            }
        return;
    }
    for (unsigned k = 0; k < DEPTH; k++)
        for (unsigned i8 = 0; i8 < ROWS / 8; i8++) {
            read_unit(o, mn_major(o, i8, k), fences, "a product's A", x);
            for (unsigned j = 0; j < 8; j++) a[i8 * 8 + j][k] = x[j];
        }
}

void decode_b(unsigned long long descriptor, bool is_mn_major, unsigned fences, int n, float (&b)[DEPTH][MAX_COLUMNS]) {
    const Operand o = parse(descriptor);
    const unsigned columns = static_cast<unsigned>(n);
    float x[8];
    if (is_mn_major) {
        for (unsigned k = 0; k < DEPTH; k++)
            for (unsigned i8 = 0; i8 < columns / 8; i8++) {
                read_unit(o, mn_major(o, i8, k), fences, "a product's B", x);
                memcpy(&b[k][i8 * 8], x, sizeof x);
            }
        return;
    }
    for (unsigned i = 0; i < columns; i++)
        for (unsigned k8 = 0; k8 < DEPTH / 8; k8++) {
            read_unit(o, k_major(o, i, k8), fences, "a product's B", x);
            for (unsigned j = 0; j < 8; j++) b[k8 * 8 + j][i] = x[j];
        }
}

void multiply(float* d, const float (&a)[ROWS][DEPTH], const float (&b)[DEPTH][MAX_COLUMNS], int n) {
    for (int row = 0; row < ROWS; row += MR) {
        int column = 0;
        for (; column + 2 * LANES <= n; column += 2 * LANES)
            multiply_block<2>(d + row * n + column, &a[row], &b[0][column], n);
        if (column < n) multiply_block<1>(d + row * n + column, &a[row], &b[0][column], n);
    }
}

}  // namespace emulator
