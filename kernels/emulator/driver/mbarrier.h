// Barriers in shared memory, as copies see them.
#pragma once
#include "emulator/hopper.h"

namespace emulator {

// Reports a barrier that copies do not know.
void require_published(const void* word);
// Bytes of a copy have arrived.
void arrive_bytes(void* word, unsigned bytes);

}  // namespace emulator
