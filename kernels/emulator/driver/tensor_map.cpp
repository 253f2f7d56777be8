// cuTensorMapEncodeTiled, for matrices.
#include "tensor_map.h"

#include <string.h>

#include "api.h"

using namespace emulator;

namespace {
// Bytes of an element by CUtensorMapDataType, from UINT8 on to TFLOAT32_FTZ; packed types of 4 and 6 bits come after.
constexpr uint32_t ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr int TYPES = sizeof ELEMENT_BYTES / sizeof *ELEMENT_BYTES;
}  // namespace

// Refuses what the documentation says is an error; of what is left, emulates matrices of elements next to each other that are
// filled up with zeros.
API cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* dims, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int promotion,
                           int fill) {
    ENTER;
    REQUIRE(current_arch() >= 90, CUDA_ERROR_NOT_SUPPORTED);
    REQUIRE(map != nullptr && reinterpret_cast<uintptr_t>(map) % 64 == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(type >= 0 && type < TYPES && rank >= 1 && rank <= 5, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(address != nullptr && reinterpret_cast<uintptr_t>(address) % 16 == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(dims != nullptr && box != nullptr && element_strides != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(interleave >= 0 && interleave <= 2 && swizzle >= 0 && swizzle <= 3, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(promotion >= 0 && promotion <= 3 && fill >= 0 && fill <= 1, CUDA_ERROR_INVALID_VALUE);
    const uint64_t element = ELEMENT_BYTES[type];
    for (uint32_t d = 0; d < rank; d++) {
        REQUIRE(dims[d] > 0 && dims[d] <= 1ull << 32, CUDA_ERROR_INVALID_VALUE);
        REQUIRE(box[d] > 0 && box[d] <= 256, CUDA_ERROR_INVALID_VALUE);
        REQUIRE(element_strides[d] > 0 && element_strides[d] <= 8, CUDA_ERROR_INVALID_VALUE);
    }
    for (uint32_t d = 0; d + 1 < rank; d++)
        REQUIRE(strides != nullptr && strides[d] % 16 == 0 && strides[d] < 1ull << 40, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(rank < 2 || strides[0] >= dims[0] * element, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(interleave != 0 || box[0] * element % 16 == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(swizzle == 0 || interleave != 0 || box[0] * element <= 16u << swizzle, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(fill == 0 || (type >= 6), CUDA_ERROR_INVALID_VALUE);

    REQUIRE(rank == 2 && interleave == 0 && fill == 0, CUDA_ERROR_NOT_SUPPORTED);
    REQUIRE(element_strides[0] == 1 && element_strides[1] == 1, CUDA_ERROR_NOT_SUPPORTED);
    // Rows that are not as long as the swizzle's pattern: where they lie is not written down.
    REQUIRE(swizzle == 0 || box[0] * element == 16u << swizzle, CUDA_ERROR_NOT_SUPPORTED);
    const TensorMapFields fields{TENSOR_MAP_MARK,
                                 reinterpret_cast<uint64_t>(address),
                                 dims[0],
                                 dims[1],
                                 strides[0],
                                 box[0],
                                 box[1],
                                 static_cast<uint32_t>(element),
                                 static_cast<uint32_t>(swizzle),
                                 {}};
    memcpy(map, &fields, sizeof fields);
    return CUDA_SUCCESS;
}
