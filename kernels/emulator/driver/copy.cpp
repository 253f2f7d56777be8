// Memory: allocation, copies, fills.
#include <string.h>

#include "api.h"
#include "block.h"
#include "fault.h"
#include "memory.h"

using namespace emulator;

namespace {

void* pointer(CUdeviceptr p) { return reinterpret_cast<void*>(p); }
const void* pointer_const(CUdeviceptr p) { return reinterpret_cast<const void*>(p); }
bool on_device(CUdeviceptr p, size_t bytes) { return bytes == 0 || kind_of(pointer(p), bytes) == Memory::device; }

// A host range: pinned (in one allocation), pageable, or one that leaves its pinned allocation.
bool leaves_pinned(const void* p, size_t bytes) {
    return starts_in(p, Memory::pinned) && kind_of(p, bytes) != Memory::pinned;
}

// `bytes` of zero or nothing to do still take their place in the stream.
void queue_copy(const std::shared_ptr<Stream>& stream, void* to, const void* from, size_t bytes, const char* name) {
    enqueue(stream, Kind::copy, [=] {
        set_operation(name);
        {
            FaultHandler handler;
            memmove(to, from, bytes);
        }
        set_operation(nullptr);
    });
}

std::shared_ptr<Stream> default_stream() { return current_context()->default_stream; }

// A copy that the host waits for.
CUresult copy_now(void* to, const void* from, size_t bytes, const char* name) {
    queue_copy(default_stream(), to, from, bytes, name);
    run_until(last_of(default_stream()));
    return CUDA_SUCCESS;
}

}  // namespace

API cuMemGetInfo_v2(size_t* available, size_t* total) {
    ENTER_WITH_CONTEXT;
    REQUIRE(available != nullptr && total != nullptr, CUDA_ERROR_INVALID_VALUE);
    *total = capacity();
    *available = capacity() - allocated(current_context()->device);
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    ENTER_WITH_CONTEXT;
    REQUIRE(address != nullptr && bytes > 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    void* p = allocate(bytes, Memory::device, current_context()->device);
    REQUIRE(p != nullptr, CUDA_ERROR_OUT_OF_MEMORY);
    *address = reinterpret_cast<CUdeviceptr>(p);
    return CUDA_SUCCESS;
}

// The driver waits for all work before it frees. Here the memory stays until the work that is queued now is done.
API cuMemFree_v2(CUdeviceptr address) {
    ENTER_WITH_CONTEXT;
    if (address == 0) return CUDA_SUCCESS;
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(give_up(pointer(address), Memory::device), CUDA_ERROR_INVALID_VALUE);
    after_queued_work([=] { release(pointer(address)); });
    return CUDA_SUCCESS;
}

API cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
    ENTER_WITH_CONTEXT;
    REQUIRE(address != nullptr && bytes > 0 && flags < 8, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    *address = allocate(bytes, Memory::pinned, 0);
    return *address == nullptr ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

API cuMemFreeHost(void* address) {
    ENTER_WITH_CONTEXT;
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(give_up(address, Memory::pinned), CUDA_ERROR_INVALID_VALUE);
    after_queued_work([=] { release(address); });
    return CUDA_SUCCESS;
}

API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    ENTER_WITH_CONTEXT;
    REQUIRE(on_device(to, bytes) && (from != nullptr || bytes == 0) && !leaves_pinned(from, bytes),
            CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return copy_now(pointer(to), from, bytes, "cuMemcpyHtoD");
}

API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    ENTER_WITH_CONTEXT;
    REQUIRE(on_device(from, bytes) && (to != nullptr || bytes == 0) && !leaves_pinned(to, bytes), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    return copy_now(to, pointer_const(from), bytes, "cuMemcpyDtoH");
}

// The host does not wait for a copy between device buffers.
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    ENTER_WITH_CONTEXT;
    REQUIRE(on_device(to, bytes) && on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    queue_copy(default_stream(), pointer(to), pointer_const(from), bytes, "cuMemcpyDtoD");
    return CUDA_SUCCESS;
}

// Pinned memory is read when the copy runs. Of other memory the driver takes a copy before it returns.
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* handle) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(on_device(to, bytes) && (from != nullptr || bytes == 0) && !leaves_pinned(from, bytes),
            CUDA_ERROR_INVALID_VALUE);
    if (starts_in(from, Memory::pinned)) {
        queue_copy(stream, pointer(to), from, bytes, "cuMemcpyHtoDAsync");
        return CUDA_SUCCESS;
    }
    REQUIRE(stream->capture == nullptr, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const unsigned char* first = static_cast<const unsigned char*>(from);
    enqueue(stream, Kind::copy, [staged = std::vector<unsigned char>(first, first + bytes), to] {
        memcpy(pointer(to), staged.data(), staged.size());
    });
    return CUDA_SUCCESS;
}

// Into memory that is not pinned the driver copies before it returns.
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* handle) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(on_device(from, bytes) && (to != nullptr || bytes == 0) && !leaves_pinned(to, bytes), CUDA_ERROR_INVALID_VALUE);
    const bool pinned = starts_in(to, Memory::pinned);
    REQUIRE(pinned || stream->capture == nullptr, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    queue_copy(stream, to, pointer_const(from), bytes, "cuMemcpyDtoHAsync");
    if (!pinned) run_until(last_of(stream));
    return CUDA_SUCCESS;
}

API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* handle) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(on_device(to, bytes) && on_device(from, bytes), CUDA_ERROR_INVALID_VALUE);
    queue_copy(stream, pointer(to), pointer_const(from), bytes, "cuMemcpyDtoDAsync");
    return CUDA_SUCCESS;
}

template <class T>
static CUresult fill(CUdeviceptr to, T value, size_t count, const std::shared_ptr<Stream>& stream) {
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(count <= SIZE_MAX / sizeof(T) && on_device(to, count * sizeof(T)) && to % sizeof(T) == 0,
            CUDA_ERROR_INVALID_VALUE);
    enqueue(stream, Kind::fill, [=] {
        T* first = static_cast<T*>(pointer(to));
        for (size_t i = 0; i < count; i++) first[i] = value;
    });
    return CUDA_SUCCESS;
}

API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    ENTER_WITH_CONTEXT;
    return fill(to, value, count, default_stream());
}
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, void* handle) {
    ENTER_WITH_CONTEXT;
    return fill(to, value, count, stream_of(handle));
}
API cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    ENTER_WITH_CONTEXT;
    return fill(to, value, count, default_stream());
}
API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, void* handle) {
    ENTER_WITH_CONTEXT;
    return fill(to, value, count, stream_of(handle));
}
