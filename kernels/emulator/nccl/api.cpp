// The functions of NCCL that the engine calls. Names, numbers and layouts are those of NVIDIA's nccl.h, 2.18 to 2.30.
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <map>

#include "communicator.h"
#include "library.h"

using namespace nccl;

namespace {

constexpr int SUM = 0;
constexpr unsigned MAGIC = 0xcafebeef;

struct UniqueId {
    char name[128];
};

// As of 2.18; what newer versions have added lies behind.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char* net_name;
    int split_share;
};

std::mutex mutex;
// By the handle that the caller has.
std::map<void*, std::shared_ptr<Communicator>> communicators;

std::shared_ptr<Communicator> find(void* handle) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto it = communicators.find(handle);
    return it == communicators.end() ? nullptr : it->second;
}

bool forget(void* handle) {
    const std::lock_guard<std::mutex> lock(mutex);
    return communicators.erase(handle) == 1;
}

// What a thread has asked for since its group began.
struct Group {
    int depth = 0;
    std::map<std::shared_ptr<Communicator>, std::vector<Operation>> asked;
};
thread_local Group group;
thread_local char last_error[256] = "";

int refuse(int code, const char* why) {
    snprintf(last_error, sizeof last_error, "%s", why);
    return code;
}

int number(const char* name, int otherwise) {
    const char* text = getenv(name);
    return text == nullptr || *text == '\0' ? otherwise : atoi(text);
}

int end_group() {
    int result = SUCCESS;
    const auto asked = std::move(group.asked);
    group.asked.clear();
    for (const auto& [communicator, operations] : asked) {
        communicator->submit(operations);
        const int code = communicator->blocking() ? communicator->settle() : IN_PROGRESS;
        if (result == SUCCESS) result = code;
    }
    return result;
}

int ask(void* handle, Kind kind, const void* send, void* receive, size_t count, int type, int operation, int root, void* stream) {
    const auto communicator = find(handle);
    if (communicator == nullptr) return refuse(INVALID_ARGUMENT, "the communicator is not there");
    if (size_of(type) == 0 || operation != SUM) return refuse(INVALID_ARGUMENT, "a type or an operation that is not emulated");
    if (root < 0 || root >= communicator->world()) return refuse(INVALID_ARGUMENT, "the root is no rank");
    const bool at_root = root == communicator->rank();
    if (count > 0 && ((send == nullptr && (kind != Kind::broadcast || at_root)) || (receive == nullptr && (kind != Kind::reduce || at_root))))
        return refuse(INVALID_ARGUMENT, "a buffer is null");
    if (count == 0) return SUCCESS;
    Header header{};
    header.kind = kind;
    header.type = type;
    header.root = root;
    header.count = count;
    group.asked[communicator].push_back({header, send, receive, stream});
    return group.depth > 0 ? SUCCESS : end_group();
}

// Whether this version may have several ranks on one GPU, and has been told to.
bool shares() { return number("EMULATOR_NCCL_VERSION", 22807) >= 23000 && number("NCCL_MULTI_RANK_GPU_ENABLE", 0) == 1; }

}  // namespace

#define NCCL extern "C" __attribute__((visibility("default")))

NCCL int ncclGetVersion(int* version) {
    *version = number("EMULATOR_NCCL_VERSION", 22807);
    return SUCCESS;
}

NCCL int ncclGetUniqueId(UniqueId* id) {
    if (const int injected = emulator::library_failure(__func__); injected != 0) return refuse(SYSTEM_ERROR, "injected");
    static std::atomic<unsigned> made{0};
    const long long now = std::chrono::steady_clock::now().time_since_epoch().count();
    memset(id, 0, sizeof *id);
    snprintf(id->name, sizeof id->name, "emulated-nccl-%d-%u-%lld", getpid(), made++, now);
    return open_hub(id->name) ? SUCCESS : refuse(SYSTEM_ERROR, "cannot open a socket");
}

NCCL int ncclCommInitRankConfig(void** handle, int world, UniqueId id, int rank, const Config* config) {
    if (handle == nullptr || world < 1 || rank < 0 || rank >= world) return refuse(INVALID_ARGUMENT, "no such rank");
    if (config != nullptr && (config->magic != MAGIC || config->size < 40 || config->version < 21400))
        return refuse(INVALID_ARGUMENT, "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
    if (config != nullptr && config->blocking != INT_MIN && config->blocking != 0 && config->blocking != 1)
        return refuse(INVALID_ARGUMENT, "Invalid config blocking attribute value");
    if (!emulator::has_context()) return refuse(UNHANDLED_CUDA_ERROR, "no device is current");
    if (const int injected = emulator::library_failure(__func__); injected != 0) return refuse(SYSTEM_ERROR, "injected");
    int socket = -1;
    // EMULATOR_NCCL_ABSENT: the rank that never comes.
    if (number("EMULATOR_NCCL_ABSENT", -1) != rank) {
        socket = connect_to_hub(id.name);
        const Hello hello{rank, world, emulator::current_device(), shares() ? 1 : 0};
        if (socket < 0 || !send_all(socket, &hello, sizeof hello)) return refuse(SYSTEM_ERROR, "cannot reach the rank that made the id");
    }
    const bool blocking = config == nullptr || config->blocking != 0;
    auto communicator = std::make_shared<Communicator>(socket, rank, world, blocking);
    {
        const std::lock_guard<std::mutex> lock(mutex);
        communicators[communicator.get()] = communicator;
    }
    *handle = communicator.get();
    return blocking ? communicator->settle() : IN_PROGRESS;
}

NCCL int ncclCommGetAsyncError(void* handle, int* code) {
    const auto communicator = find(handle);
    if (communicator == nullptr) return refuse(INVALID_ARGUMENT, "the communicator is not there");
    *code = communicator->state();
    return SUCCESS;
}

NCCL int ncclCommFinalize(void* handle) {
    const auto communicator = find(handle);
    if (communicator == nullptr) return refuse(INVALID_ARGUMENT, "the communicator is not there");
    communicator->finalize();
    return communicator->blocking() ? communicator->settle() : IN_PROGRESS;
}

NCCL int ncclCommDestroy(void* handle) { return forget(handle) ? SUCCESS : refuse(INVALID_ARGUMENT, "the communicator is not there"); }

NCCL int ncclCommAbort(void* handle) {
    const auto communicator = find(handle);
    if (communicator == nullptr) return refuse(INVALID_ARGUMENT, "the communicator is not there");
    communicator->abort();
    forget(handle);
    return SUCCESS;
}

NCCL int ncclGroupStart() {
    group.depth++;
    return SUCCESS;
}

NCCL int ncclGroupEnd() {
    if (group.depth == 0) return refuse(INVALID_USAGE, "no group has begun");
    if (--group.depth > 0) return SUCCESS;
    if (const int injected = emulator::library_failure(__func__); injected != 0) return refuse(SYSTEM_ERROR, "injected");
    return end_group();
}

NCCL int ncclAllReduce(const void* send, void* receive, size_t count, int type, int operation, void* comm, void* stream) {
    return ask(comm, Kind::all_reduce, send, receive, count, type, operation, 0, stream);
}
NCCL int ncclReduce(const void* send, void* receive, size_t count, int type, int operation, int root, void* comm, void* stream) {
    return ask(comm, Kind::reduce, send, receive, count, type, operation, root, stream);
}
NCCL int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* comm, void* stream) {
    return ask(comm, Kind::broadcast, send, receive, count, type, SUM, root, stream);
}

NCCL const char* ncclGetErrorString(int code) {
    switch (code) {
        case SUCCESS: return "no error";
        case UNHANDLED_CUDA_ERROR: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
        case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
        case INTERNAL_ERROR: return "internal error - please report this issue to the NCCL developers";
        case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
        case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        case IN_PROGRESS: return "NCCL operation in progress";
        default: return "unknown result code";
    }
}
NCCL const char* ncclGetLastError(void*) { return last_error; }
