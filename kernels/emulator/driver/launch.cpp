// Modules, functions, launches.
#include <limits.h>
#include <string.h>

#include <map>
#include <set>

#include "api.h"
#include "block.h"

using namespace emulator;

namespace {

struct Module {};

struct Function {
    const Kernel* kernel;
    Module* module;
    size_t max_dynamic = MAX_STATIC_SHARED;
    int carveout = -1;
};

// Never destroyed: threads may still call the driver while the process ends.
auto& modules = *new std::set<Module*>;
auto& functions = *new std::map<Function*, std::unique_ptr<Function>>;

Function* function_of(void* handle) {
    const auto it = functions.find(static_cast<Function*>(handle));
    return it == functions.end() ? nullptr : it->second.get();
}

uint64_t hash(const std::string& text) {
    uint64_t h = 0xcbf29ce484222325u;
    for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    return h;
}

CUresult check_shape(const Function& f, dim3 grid, dim3 block, size_t shared) {
    REQUIRE(grid.x > 0 && grid.y > 0 && grid.z > 0 && block.x > 0 && block.y > 0 && block.z > 0, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(grid.x <= INT_MAX && grid.y <= 65535 && grid.z <= 65535, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(block.x <= 1024 && block.y <= 1024 && block.z <= 64, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(static_cast<size_t>(block.x) * block.y * block.z <= 1024, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(shared <= f.max_dynamic, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

CUresult launch(void* handle, dim3 grid, dim3 block, unsigned shared, void* stream_handle, void** parameters, void** extra) {
    Function* f = function_of(handle);
    REQUIRE(f != nullptr, CUDA_ERROR_INVALID_HANDLE);
    const auto stream = stream_of(stream_handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(extra == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    const CUresult shape = check_shape(*f, grid, block, shared);
    REQUIRE(shape == CUDA_SUCCESS, shape);
    REQUIRE(parameters != nullptr || f->kernel->parameters.empty(), CUDA_ERROR_INVALID_VALUE);
    auto job = std::make_shared<Launch>(
        Launch{f->kernel, grid, block, shared, std::vector<unsigned char>(f->kernel->parameter_bytes), 0});
    for (size_t i = 0; i < f->kernel->parameters.size(); i++) {
        REQUIRE(parameters[i] != nullptr, CUDA_ERROR_INVALID_VALUE);
        memcpy(job->parameters.data() + f->kernel->parameters[i].offset, parameters[i], f->kernel->parameters[i].size);
    }
    job->seed = mix(stream->seed++, hash(f->kernel->name));
    enqueue(stream, Kind::kernel, [job] {
        run_grid(*job);
        job->seed = mix(job->seed, 1);  // a graph runs it again
    });
    return CUDA_SUCCESS;
}

}  // namespace

// The image does not matter: the kernels are those that were compiled for the emulator.
API cuModuleLoadData(void** module, const void* image) {
    ENTER_WITH_CONTEXT;
    REQUIRE(module != nullptr && image != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!capture_forbids(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    Module* m = new Module;
    modules.insert(m);
    *module = m;
    return CUDA_SUCCESS;
}

API cuModuleUnload(void* module) {
    ENTER_WITH_CONTEXT;
    Module* m = static_cast<Module*>(module);
    REQUIRE(modules.erase(m) == 1, CUDA_ERROR_INVALID_HANDLE);
    run_device(current_context()->device);
    for (auto it = functions.begin(); it != functions.end();)
        it = it->second->module == m ? functions.erase(it) : std::next(it);
    delete m;
    return CUDA_SUCCESS;
}

API cuModuleGetFunction(void** function, void* module, const char* name) {
    ENTER_WITH_CONTEXT;
    REQUIRE(function != nullptr && name != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(modules.count(static_cast<Module*>(module)) == 1, CUDA_ERROR_INVALID_HANDLE);
    const Kernel* kernel = find_kernel(name, current_arch());
    REQUIRE(kernel != nullptr, CUDA_ERROR_NOT_FOUND);
    for (const auto& entry : functions)
        if (entry.second->kernel == kernel && entry.second->module == module) {
            *function = entry.first;
            return CUDA_SUCCESS;
        }
    auto f = std::make_unique<Function>();
    f->kernel = kernel;
    f->module = static_cast<Module*>(module);
    *function = f.get();
    functions[f.get()] = std::move(f);
    return CUDA_SUCCESS;
}

API cuFuncSetAttribute(void* function, int attribute, int value) {
    ENTER_WITH_CONTEXT;
    Function* f = function_of(function);
    REQUIRE(f != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (attribute == 8) {  // MAX_DYNAMIC_SHARED_SIZE_BYTES
        REQUIRE(value >= 0 && static_cast<size_t>(value) <= max_shared_of_arch(current_arch()), CUDA_ERROR_INVALID_VALUE);
        f->max_dynamic = static_cast<size_t>(value) < MAX_STATIC_SHARED ? MAX_STATIC_SHARED : static_cast<size_t>(value);
        return CUDA_SUCCESS;
    }
    if (attribute == 9) {  // PREFERRED_SHARED_MEMORY_CARVEOUT
        REQUIRE(value >= -1 && value <= 100, CUDA_ERROR_INVALID_VALUE);
        f->carveout = value;
        return CUDA_SUCCESS;
    }
    REQUIRE(attribute >= 10 && attribute < 16, CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

// Registers, constant, local and static shared memory are the compiler's to know: plausible numbers are given.
API cuFuncGetAttribute(int* value, int attribute, void* function) {
    ENTER_WITH_CONTEXT;
    Function* f = function_of(function);
    REQUIRE(f != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(value != nullptr && attribute >= 0 && attribute < 16, CUDA_ERROR_INVALID_VALUE);
    const int arch = current_arch();
    const int table[] = {1024, 0, 0, 0, 64, arch, arch, 0, static_cast<int>(f->max_dynamic), f->carveout};
    *value = attribute < 10 ? table[attribute] : 0;
    return CUDA_SUCCESS;
}

API cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* size) {
    ENTER;
    Function* f = function_of(function);
    REQUIRE(f != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(offset != nullptr && index < f->kernel->parameters.size(), CUDA_ERROR_INVALID_VALUE);
    *offset = f->kernel->parameters[index].offset;
    if (size != nullptr) *size = f->kernel->parameters[index].size;
    return CUDA_SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* function, int threads, size_t shared) {
    ENTER_WITH_CONTEXT;
    Function* f = function_of(function);
    REQUIRE(f != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(blocks != nullptr && threads > 0 && threads <= 1024, CUDA_ERROR_INVALID_VALUE);
    const size_t by_threads = 2048 / static_cast<size_t>((threads + 31) / 32 * 32),
                 by_shared = (max_shared_of_arch(current_arch()) + RESERVED_SHARED) / (shared + RESERVED_SHARED);
    *blocks = shared > f->max_dynamic ? 0 : static_cast<int>(by_threads < by_shared ? by_threads : by_shared);
    return CUDA_SUCCESS;
}

API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
    ENTER_WITH_CONTEXT;
    return launch(function, dim3(gx, gy, gz), dim3(bx, by, bz), shared, stream, parameters, extra);
}

namespace {
struct LaunchAttribute {
    unsigned id;
    char pad[4];
    union {
        char bytes[64];
        struct {
            unsigned x, y, z;
        } cluster;
        int flag;
    } value;
};
struct LaunchConfig {
    unsigned gx, gy, gz, bx, by, bz, shared;
    void* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
}  // namespace

// Attributes that change only speed are taken; clusters of more than one block are not emulated.
API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
    ENTER_WITH_CONTEXT;
    REQUIRE(config != nullptr && (config->attribute_count == 0 || config->attributes != nullptr), CUDA_ERROR_INVALID_VALUE);
    for (unsigned i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& a = config->attributes[i];
        const bool one_block = a.value.cluster.x <= 1 && a.value.cluster.y <= 1 && a.value.cluster.z <= 1;
        REQUIRE(a.id != 4 || one_block, CUDA_ERROR_NOT_SUPPORTED);          // cluster dimension
        REQUIRE(a.id != 2 || a.value.flag == 0, CUDA_ERROR_NOT_SUPPORTED);  // cooperative: blocks run one after another
    }
    return launch(function, dim3(config->gx, config->gy, config->gz), dim3(config->bx, config->by, config->bz),
                  config->shared, config->stream, parameters, extra);
}
