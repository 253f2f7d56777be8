// What the emulated cuBLASLt and NCCL ask of the emulated driver.
#pragma once
#include <stddef.h>

#include <functional>

#pragma GCC visibility push(default)
namespace emulator {

// Queues work on a stream, or captures it; false if there is no such stream. `name` is static.
bool enqueue_library(void* stream, const char* name, std::function<void()> work);

// Reports, and ends the process, if a range is not aligned or does not lie in one buffer of the device.
void check_range(const char* what, const void* first, size_t bytes, size_t align);

// Whether the thread has a context, and of which device.
bool has_context();
int current_device();

// Runs what is queued on a stream, if it is still there.
void finish_stream(void* stream);

// Calls `f` if no other thread is in the driver; false if one is.
bool if_idle(const std::function<void()>& f);

// The code that EMULATOR_FAIL has for this call, or 0.
int library_failure(const char* function);

}  // namespace emulator
#pragma GCC visibility pop
