// cuInit, devices, contexts, and the names of errors.
#include <stdio.h>
#include <string.h>

#include "api.h"
#include "block.h"
#include "memory.h"
#include "settings.h"

namespace emulator {
namespace {

bool initialized = false;
DeviceContext contexts[64];
thread_local DeviceContext* bound = nullptr;

std::recursive_mutex& mutex() {
    static auto& m = *new std::recursive_mutex;
    return m;
}

}  // namespace

Call::Call(const char* function) : lock(mutex()), error(injected_failure(function)) {
    if (error != CUDA_SUCCESS) return;
    const bool before_init = strcmp(function, "cuInit") == 0 || strcmp(function, "cuDriverGetVersion") == 0 ||
                             strncmp(function, "cuGetError", 10) == 0;
    if (!initialized && !before_init) error = CUDA_ERROR_NOT_INITIALIZED;
}

std::unique_lock<std::recursive_mutex> try_driver() { return std::unique_lock<std::recursive_mutex>(mutex(), std::try_to_lock); }

DeviceContext* current_context() { return bound; }
int current_arch() { return settings().archs[bound == nullptr ? 0 : bound->device]; }

}  // namespace emulator

using namespace emulator;

API cuInit(unsigned flags) {
    ENTER;
    REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(settings().devices > 0, CUDA_ERROR_NO_DEVICE);
    initialized = true;
    return CUDA_SUCCESS;
}

API cuDriverGetVersion(int* version) {
    ENTER;
    REQUIRE(version != nullptr, CUDA_ERROR_INVALID_VALUE);
    *version = settings().driver;
    return CUDA_SUCCESS;
}

API cuDeviceGetCount(int* count) {
    ENTER;
    REQUIRE(count != nullptr, CUDA_ERROR_INVALID_VALUE);
    *count = settings().devices;
    return CUDA_SUCCESS;
}

static bool is_device(CUdevice device) { return device >= 0 && device < settings().devices && device < 64; }

API cuDeviceGet(CUdevice* device, int ordinal) {
    ENTER;
    REQUIRE(device != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(ordinal), CUDA_ERROR_INVALID_DEVICE);
    *device = ordinal;
    return CUDA_SUCCESS;
}

API cuDeviceGetName(char* name, int length, CUdevice device) {
    ENTER;
    REQUIRE(name != nullptr && length > 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    snprintf(name, static_cast<size_t>(length), "Emulator sm_%d", settings().archs[device]);
    return CUDA_SUCCESS;
}

API cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    ENTER;
    REQUIRE(bytes != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    *bytes = capacity();
    return CUDA_SUCCESS;
}

API cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice device) {
    ENTER;
    REQUIRE(uuid != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    memcpy(uuid, "emulated device", 15);
    uuid[15] = static_cast<unsigned char>(device);
    return CUDA_SUCCESS;
}

API cuDeviceGetPCIBusId(char* text, int length, CUdevice device) {
    ENTER;
    REQUIRE(text != nullptr && length >= 13, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    snprintf(text, static_cast<size_t>(length), "0000:%02X:00.0", device + 1);
    return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    ENTER;
    REQUIRE(value != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    const int arch = settings().archs[device];
    // Those of an H100 SXM, but for the architecture and what follows from it.
    static const struct {
        int attribute, value;
    } table[] = {
        {1, 1024},       {2, 1024},     {3, 1024},  {4, 64},      // threads of a block, and along x, y, z
        {5, 2147483647}, {6, 65535},    {7, 65535},               // blocks along x, y, z
        {8, 48 << 10},   {9, 64 << 10}, {10, 32},   {12, 65536},  // shared, constant, warp, registers of a block
        {13, 1980000},   {15, 1},       {16, 132},  {18, 0},        {19, 1},    {20, 0},        {31, 1},  {32, 1}, {33, 1},
        {34, 0},         {36, 2619000}, {37, 5120}, {38, 50 << 20}, {39, 2048}, {40, 3},        {41, 1},  {50, 0}, {78, 1},
        {82, 65536},     {83, 1},       {90, 1},    {95, 1},        {106, 32},  {111, 1 << 10}, {115, 1},
    };
    switch (attribute) {
        case 75:
            *value = arch / 10;
            return CUDA_SUCCESS;
        case 76:
            *value = arch % 10;
            return CUDA_SUCCESS;
        case 81:
            *value = static_cast<int>(max_shared_of_arch(arch) + RESERVED_SHARED);
            return CUDA_SUCCESS;
        case 97:
            *value = static_cast<int>(max_shared_of_arch(arch));
            return CUDA_SUCCESS;
        case 33:
            *value = device + 1;
            return CUDA_SUCCESS;
    }
    for (const auto& row : table)
        if (row.attribute == attribute) {
            *value = row.value;
            return CUDA_SUCCESS;
        }
    REQUIRE(attribute > 0 && attribute < 160, CUDA_ERROR_INVALID_VALUE);
    *value = 0;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRetain(void** context, CUdevice device) {
    ENTER;
    REQUIRE(context != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    DeviceContext& c = contexts[device];
    c.device = device;
    c.retained++;
    if (c.default_stream == nullptr) c.default_stream = new_stream(device, true, true);
    *context = &c;
    return CUDA_SUCCESS;
}

API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER;
    REQUIRE(is_device(device), CUDA_ERROR_INVALID_DEVICE);
    REQUIRE(contexts[device].retained > 0, CUDA_ERROR_INVALID_CONTEXT);
    if (--contexts[device].retained == 0) run_device(device);
    return CUDA_SUCCESS;
}

API cuCtxSetCurrent(void* context) {
    ENTER;
    DeviceContext* c = static_cast<DeviceContext*>(context);
    REQUIRE(c == nullptr || (c >= contexts && c < contexts + 64 && c->retained > 0), CUDA_ERROR_INVALID_CONTEXT);
    bound = c;
    return CUDA_SUCCESS;
}

API cuCtxGetCurrent(void** context) {
    ENTER;
    REQUIRE(context != nullptr, CUDA_ERROR_INVALID_VALUE);
    *context = bound;
    return CUDA_SUCCESS;
}

API cuCtxGetDevice(CUdevice* device) {
    ENTER_WITH_CONTEXT;
    REQUIRE(device != nullptr, CUDA_ERROR_INVALID_VALUE);
    *device = bound->device;
    return CUDA_SUCCESS;
}

API cuCtxSynchronize() {
    ENTER_WITH_CONTEXT;
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    run_device(bound->device);
    return CUDA_SUCCESS;
}

static const struct {
    int code;
    const char *name, *text;
} errors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device is busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
     "the graph update was not performed because it included changes which violated constraints specific to instantiated "
     "graph update"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

API cuGetErrorName(CUresult error, const char** text) {
    REQUIRE(text != nullptr, CUDA_ERROR_INVALID_VALUE);
    for (const auto& row : errors)
        if (row.code == error) {
            *text = row.name;
            return CUDA_SUCCESS;
        }
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

API cuGetErrorString(CUresult error, const char** text) {
    REQUIRE(text != nullptr, CUDA_ERROR_INVALID_VALUE);
    for (const auto& row : errors)
        if (row.code == error) {
            *text = row.text;
            return CUDA_SUCCESS;
        }
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}
