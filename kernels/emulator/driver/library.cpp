#include "library.h"

#include "api.h"
#include "block.h"
#include "fault.h"
#include "memory.h"
#include "settings.h"

namespace emulator {

bool enqueue_library(void* handle, const char* name, std::function<void()> work) {
    Call call("");
    if (call.error != CUDA_SUCCESS || current_context() == nullptr) return false;
    const auto stream = stream_of(handle);
    if (stream == nullptr) return false;
    enqueue(stream, Kind::library, [name, work = std::move(work)] {
        set_operation(name);
        {
            FaultHandler handler;
            work();
        }
        set_operation(nullptr);
    });
    return true;
}

void check_range(const char* what, const void* first, size_t bytes, size_t align) {
    if (reinterpret_cast<uintptr_t>(first) % align != 0) fail("%s at %p is not aligned to %zu bytes", what, first, align);
    if (kind_of(first, bytes) == Memory::device) return;
    char where[320];
    describe_address(static_cast<const char*>(first) + (kind_of(first, 1) == Memory::device ? bytes - 1 : 0), where,
                     sizeof where);
    fail("%s, %zu bytes at %p, leaves its buffer: %s", what, bytes, first, where);
}

bool has_context() { return current_context() != nullptr; }

int current_device() { return current_context()->device; }

void finish_stream(void* handle) {
    Call call("");
    // The default stream is the thread's context's, which this thread may not have.
    const auto stream = handle == nullptr ? nullptr : stream_of(handle);
    if (stream != nullptr) run_until(last_of(stream));
}

bool if_idle(const std::function<void()>& f) {
    const auto lock = try_driver();
    if (!lock.owns_lock()) return false;
    f();
    return true;
}

int library_failure(const char* function) {
    Call call("");
    return injected_failure(function);
}

}  // namespace emulator
