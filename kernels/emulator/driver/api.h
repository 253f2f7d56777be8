// What the functions of the driver API share. Names, numbers and layouts are those of NVIDIA's documentation of CUDA 13.0.
#pragma once
#include <memory>
#include <mutex>

#include "stream.h"

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
enum : int {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_MERGE = 902,
    CUDA_ERROR_STREAM_CAPTURE_UNMATCHED = 903,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE = 910,
};

#define API extern "C" __attribute__((visibility("default"))) CUresult
#define ENTER                        \
    ::emulator::Call call(__func__); \
    if (call.error != CUDA_SUCCESS) return call.error
#define ENTER_WITH_CONTEXT \
    ENTER;                 \
    if (::emulator::current_context() == nullptr) return CUDA_ERROR_INVALID_CONTEXT
#define REQUIRE(condition, code) \
    if (!(condition)) return code

namespace emulator {

// One call of the driver: calls exclude each other.
struct Call {
    explicit Call(const char* function);
    std::unique_lock<std::recursive_mutex> lock;
    CUresult error;
};

// Keeps other threads out of the driver, if none is in it.
std::unique_lock<std::recursive_mutex> try_driver();

struct DeviceContext {
    int device = 0;
    int retained = 0;
    std::shared_ptr<Stream> default_stream;
};
DeviceContext* current_context();
// The architecture of its device, or of the first.
int current_arch();

// The stream of a handle; null if there is none.
std::shared_ptr<Stream> stream_of(void* handle);

// Whether this thread captures in a mode that forbids calls which wait or allocate.
bool capture_forbids();

}  // namespace emulator
