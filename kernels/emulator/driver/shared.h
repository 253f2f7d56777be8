// Shared memory of the block that runs.
#pragma once
#include <stddef.h>

namespace emulator {

// Poisons the static part and `dynamic` bytes that end before a page no one may touch.
void start_shared(size_t dynamic);
// Reports writes past the end of a static array.
void check_shared();
bool is_shared(const void* pointer, size_t bytes);
// The memory at an address of `shared_address`; null if not all of it is shared memory.
unsigned char* shared_at(unsigned address, size_t bytes);

}  // namespace emulator
