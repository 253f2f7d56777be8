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

int library_failure(const char* function) {
    Call call("");
    return injected_failure(function);
}

}  // namespace emulator
