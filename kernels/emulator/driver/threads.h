// What barriers, copies and products ask of the scheduler of the block's threads (block.cpp).
#pragma once
#include <stddef.h>

#include <functional>

#include "random.h"

namespace emulator {

constexpr unsigned MAX_THREADS = 1024;

// The running thread's number in its block, and how many the block has.
unsigned thread_index();
unsigned thread_count();
Random& block_random();

// Leaves the running thread until `make_ready`. A deadlock's report says `what` it waits at, and what `describe` writes, if
// given, of the object and number.
using Describe = void (*)(const void* object, unsigned number, char* text, size_t size);
void suspend(const char* what, Describe describe = nullptr, const void* object = nullptr, unsigned number = 0);
void make_ready(unsigned thread);

// Work beside the threads: at once, or later at a drawn time; in the latter case at the latest when no thread can run. What
// goes wrong in it is reported as the running thread's.
void beside(std::function<void()> work);

// Called by block.cpp for each block and for a thread that leaves the kernel: async.cpp, bulk.cpp, mbarrier.cpp, wgmma.cpp.
void start_copies();
void start_mbarriers();
void start_bulk();
void start_products();
void leave_bulk();
void leave_products();
void finish_bulk();
void finish_mbarriers();

}  // namespace emulator
