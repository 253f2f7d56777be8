// Memory of the device and pinned memory of the host: each allocation of its own, between pages that no one may touch.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

enum class Memory { none, device, pinned };

// Poisoned memory whose last byte (of `bytes` rounded up to 16) lies right before a guard page; null if there is none.
void* allocate(size_t bytes, Memory kind, int device);
// Gives its bytes back; false if it is not the start of such an allocation. The memory itself stays until `release`.
bool give_up(void* pointer, Memory kind);
// Makes it inaccessible.
void release(void* pointer);

// The kind of memory that all of [pointer, pointer + bytes) lies in, in one allocation.
Memory kind_of(const void* pointer, size_t bytes);
// Whether the first byte lies in an allocation of this kind.
bool starts_in(const void* pointer, Memory kind);

size_t allocated(int device);
size_t capacity();

// "bad access at A, N bytes past the end of the buffer of M bytes at B".
void describe_address(const void* address, char* text, size_t size);

}  // namespace emulator
