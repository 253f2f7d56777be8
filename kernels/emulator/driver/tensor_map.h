// What the emulator keeps in a CUtensorMap, which is opaque to all others.
#pragma once
#include <stdint.h>

namespace emulator {

struct TensorMapFields {
    uint64_t mark;
    uint64_t address;
    uint64_t columns, rows;  // elements
    uint64_t stride;         // bytes from row to row
    uint32_t box_columns, box_rows;
    uint32_t element;  // bytes
    uint32_t swizzle;  // bits: 0 to 3 of the chunk's number are changed
    uint64_t unused[9];
};
static_assert(sizeof(TensorMapFields) == 128, "as CUtensorMap");
constexpr uint64_t TENSOR_MAP_MARK = 0x70616d726f736e65u;

// Where 16-byte chunks lie: their number in a 128-byte row is changed by the row's number, both as in the address.
inline unsigned swizzled(unsigned address, unsigned bits) {
    return address ^ ((address >> 7 & ((1u << bits) - 1)) << 4);
}

}  // namespace emulator
