// Capture of a stream into a graph, and its launch.
#include <algorithm>
#include <map>

#include "api.h"

using namespace emulator;

namespace {

// Never destroyed: threads may still call the driver while the process ends.
auto& graphs = *new std::map<void*, std::shared_ptr<Graph>>;
struct Executable {
    std::shared_ptr<const Graph> graph;
};
auto& executables = *new std::map<void*, std::unique_ptr<Executable>>;

// Whether every node comes before one of `last`.
bool all_joined(const Graph& graph, const std::vector<size_t>& last) {
    std::vector<bool> reached(graph.nodes.size(), false);
    for (const size_t n : last) reached[n] = true;
    for (size_t n = graph.nodes.size(); n-- > 0;)
        if (reached[n])
            for (const size_t before : graph.nodes[n].after) reached[before] = true;
    return std::find(reached.begin(), reached.end(), false) == reached.end();
}

}  // namespace

API cuStreamBeginCapture_v2(void* handle, int mode) {
    ENTER_WITH_CONTEXT;
    REQUIRE(mode >= 0 && mode <= 2, CUDA_ERROR_INVALID_VALUE);
    // The default stream cannot be captured.
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(stream != current_context()->default_stream, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(stream->capture == nullptr, CUDA_ERROR_ILLEGAL_STATE);
    auto capture = std::make_shared<Capture>();
    capture->graph = std::make_shared<Graph>();
    capture->origin = stream.get();
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    capture->members = {stream};
    stream->capture = capture;
    stream->captured_last.clear();
    return CUDA_SUCCESS;
}

API cuStreamEndCapture(void* handle, void** graph) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(graph != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(stream->capture != nullptr, CUDA_ERROR_ILLEGAL_STATE);
    const auto capture = stream->capture;
    REQUIRE(capture->origin == stream.get(), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    REQUIRE(capture->mode == 2 || capture->thread == std::this_thread::get_id(), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    const bool joined = all_joined(*capture->graph, stream->captured_last);
    for (const auto& member : capture->members) member->capture = nullptr, member->captured_last.clear();
    *graph = nullptr;
    REQUIRE(!capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    REQUIRE(joined, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    graphs[capture->graph.get()] = capture->graph;
    *graph = capture->graph.get();
    return CUDA_SUCCESS;
}

API cuStreamIsCapturing(void* handle, int* status) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(status != nullptr, CUDA_ERROR_INVALID_VALUE);
    *status = stream->capture == nullptr ? 0 : stream->capture->invalid ? 2 : 1;
    return CUDA_SUCCESS;
}

API cuThreadExchangeStreamCaptureMode(int* mode) {
    ENTER;
    REQUIRE(mode != nullptr && *mode >= 0 && *mode <= 2, CUDA_ERROR_INVALID_VALUE);
    static thread_local int of_thread = 0;
    std::swap(*mode, of_thread);
    return CUDA_SUCCESS;
}

API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    ENTER_WITH_CONTEXT;
    const auto it = graphs.find(graph);
    REQUIRE(it != graphs.end(), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(executable != nullptr, CUDA_ERROR_INVALID_VALUE);
    auto e = std::make_unique<Executable>(Executable{it->second});
    *executable = e.get();
    executables[e.get()] = std::move(e);
    return CUDA_SUCCESS;
}

namespace {
struct UpdateInfo {
    int result;
    void *node, *from;
};
}  // namespace

API cuGraphExecUpdate_v2(void* executable, void* graph, UpdateInfo* info) {
    ENTER_WITH_CONTEXT;
    const auto e = executables.find(executable);
    const auto g = graphs.find(graph);
    REQUIRE(e != executables.end() && g != graphs.end(), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(info != nullptr, CUDA_ERROR_INVALID_VALUE);
    const Graph &old = *e->second->graph, &now = *g->second;
    *info = {0, nullptr, nullptr};
    bool topology = old.nodes.size() == now.nodes.size(), kinds = topology;
    for (size_t i = 0; topology && i < now.nodes.size(); i++) {
        topology = old.nodes[i].after == now.nodes[i].after;
        kinds = kinds && old.nodes[i].operation->kind == now.nodes[i].operation->kind;
    }
    if (!topology || !kinds) {
        info->result = topology ? 3 : 2;  // NODE_TYPE_CHANGED, TOPOLOGY_CHANGED
        return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    }
    e->second->graph = g->second;
    return CUDA_SUCCESS;
}

API cuGraphLaunch(void* executable, void* handle) {
    ENTER_WITH_CONTEXT;
    const auto e = executables.find(executable);
    const auto stream = stream_of(handle);
    REQUIRE(e != executables.end() && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(stream->capture == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    enqueue(stream, Kind::graph, [graph = e->second->graph] { run_graph(*graph); });
    return CUDA_SUCCESS;
}

API cuGraphUpload(void* executable, void* handle) {
    ENTER_WITH_CONTEXT;
    REQUIRE(executables.count(executable) == 1 && stream_of(handle) != nullptr, CUDA_ERROR_INVALID_HANDLE);
    return CUDA_SUCCESS;
}

API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    ENTER_WITH_CONTEXT;
    const auto it = graphs.find(graph);
    REQUIRE(it != graphs.end(), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(count != nullptr, CUDA_ERROR_INVALID_VALUE);
    const auto& all = it->second->nodes;
    if (nodes != nullptr)
        for (size_t i = 0; i < *count; i++) nodes[i] = i < all.size() ? static_cast<void*>(all[i].operation.get()) : nullptr;
    *count = nodes == nullptr ? all.size() : std::min(*count, all.size());
    return CUDA_SUCCESS;
}

API cuGraphDestroy(void* graph) {
    ENTER;
    return graphs.erase(graph) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

API cuGraphExecDestroy(void* executable) {
    ENTER;
    return executables.erase(executable) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}
