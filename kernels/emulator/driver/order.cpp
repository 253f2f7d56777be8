// Streams and events of the driver API.
#include <chrono>
#include <map>

#include "api.h"
#include "settings.h"

namespace emulator {
namespace {

// Never destroyed: threads may still call the driver while the process ends.
auto& streams = *new std::map<void*, std::shared_ptr<Stream>>;
auto& events = *new std::map<void*, std::shared_ptr<Event>>;

std::shared_ptr<Event> event_of(void* handle) {
    const auto it = events.find(handle);
    return it == events.end() ? nullptr : it->second;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void add_to(const std::shared_ptr<Capture>& capture, const std::shared_ptr<Stream>& stream) {
    stream->capture = capture;
    stream->captured_last.clear();
    capture->members.push_back(stream);
}

CUresult record(const std::shared_ptr<Event>& event, const std::shared_ptr<Stream>& stream) {
    event->recorded = true;
    event->capture = stream->capture;
    if (stream->capture != nullptr) {
        event->captured_at = stream->captured_last;
        return CUDA_SUCCESS;
    }
    const auto seconds = event->seconds = std::make_shared<double>(0.0);
    enqueue(stream, Kind::event, [seconds] { *seconds = now(); });
    event->ticket = last_of(stream);
    return CUDA_SUCCESS;
}

CUresult wait_in_capture(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event) {
    if (event->capture == nullptr) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (stream->capture == nullptr) {
        REQUIRE(event->capture->origin->capture == event->capture, CUDA_ERROR_CAPTURED_EVENT);  // that capture has ended
        add_to(event->capture, stream);
    }
    REQUIRE(stream->capture == event->capture, CUDA_ERROR_STREAM_CAPTURE_MERGE);
    auto& last = stream->captured_last;
    last.insert(last.end(), event->captured_at.begin(), event->captured_at.end());
    return CUDA_SUCCESS;
}

}  // namespace

std::shared_ptr<Stream> stream_of(void* handle) {
    if (handle == nullptr || handle == reinterpret_cast<void*>(1)) return current_context()->default_stream;
    const auto it = streams.find(handle);
    return it == streams.end() ? nullptr : it->second;
}

bool capture_forbids() {
    for (const auto& entry : streams) {
        const auto& capture = entry.second->capture;
        // Modes: 0 global, 1 thread-local, 2 relaxed. Another thread's global capture is not held against this one.
        if (capture != nullptr && capture->mode != 2 && capture->thread == std::this_thread::get_id()) {
            capture->invalid = true;
            return true;
        }
    }
    return false;
}

}  // namespace emulator

using namespace emulator;

API cuStreamCreate(void** handle, unsigned flags) {
    ENTER_WITH_CONTEXT;
    REQUIRE(handle != nullptr && flags <= 1, CUDA_ERROR_INVALID_VALUE);
    const auto stream = new_stream(current_context()->device, flags == 0, false);
    streams[stream.get()] = stream;
    *handle = stream.get();
    return CUDA_SUCCESS;
}

API cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    ENTER_WITH_CONTEXT;
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return CUDA_SUCCESS;
}

API cuStreamDestroy_v2(void* handle) {
    ENTER_WITH_CONTEXT;
    const auto it = streams.find(handle);
    REQUIRE(it != streams.end(), CUDA_ERROR_INVALID_HANDLE);
    const auto stream = it->second;
    if (stream->capture != nullptr) stream->capture->invalid = true;
    streams.erase(it);
    retire(stream);
    return CUDA_SUCCESS;
}

API cuStreamSynchronize(void* handle) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture != nullptr) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    run_until(last_of(stream));
    return CUDA_SUCCESS;
}

// Each question lets some work run, so that a loop of questions ends.
API cuStreamQuery(void* handle) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    REQUIRE(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(stream->capture == nullptr, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    const bool done = is_done(last_of(stream));
    run_towards(last_of(stream));
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuStreamWaitEvent(void* handle, void* event_handle, unsigned flags) {
    ENTER_WITH_CONTEXT;
    const auto stream = stream_of(handle);
    const auto event = event_of(event_handle);
    REQUIRE(stream != nullptr && event != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(flags <= 1, CUDA_ERROR_INVALID_VALUE);
    if (!event->recorded) return CUDA_SUCCESS;
    if (stream->capture != nullptr || event->capture != nullptr) return wait_in_capture(stream, event);
    enqueue(stream, Kind::event, [] {}, {event->ticket});
    return CUDA_SUCCESS;
}

API cuEventCreate(void** handle, unsigned flags) {
    ENTER_WITH_CONTEXT;
    REQUIRE(handle != nullptr && flags < 8, CUDA_ERROR_INVALID_VALUE);
    const auto event = std::make_shared<Event>();
    event->timed = (flags & 2) == 0;
    events[event.get()] = event;
    *handle = event.get();
    return CUDA_SUCCESS;
}

API cuEventDestroy_v2(void* handle) {
    ENTER_WITH_CONTEXT;
    return events.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

API cuEventRecord(void* handle, void* stream_handle) {
    ENTER_WITH_CONTEXT;
    const auto event = event_of(handle);
    const auto stream = stream_of(stream_handle);
    REQUIRE(event != nullptr && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    return record(event, stream);
}

API cuEventQuery(void* handle) {
    ENTER_WITH_CONTEXT;
    const auto event = event_of(handle);
    REQUIRE(event != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(event->capture == nullptr, CUDA_ERROR_CAPTURED_EVENT);
    const bool done = is_done(event->ticket);
    run_towards(event->ticket);
    return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

API cuEventSynchronize(void* handle) {
    ENTER_WITH_CONTEXT;
    const auto event = event_of(handle);
    REQUIRE(event != nullptr, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(event->capture == nullptr, CUDA_ERROR_CAPTURED_EVENT);
    run_until(event->ticket);
    return CUDA_SUCCESS;
}

// The emulator's own time: it says nothing about a device.
API cuEventElapsedTime_v2(float* milliseconds, void* start_handle, void* end_handle) {
    ENTER_WITH_CONTEXT;
    const auto start = event_of(start_handle), end = event_of(end_handle);
    REQUIRE(milliseconds != nullptr, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(start != nullptr && end != nullptr && start->timed && end->timed && start->seconds != nullptr &&
                end->seconds != nullptr,
            CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(start->capture == nullptr && end->capture == nullptr, CUDA_ERROR_CAPTURED_EVENT);
    REQUIRE(is_done(start->ticket) && is_done(end->ticket), CUDA_ERROR_NOT_READY);
    *milliseconds = settings().even ? 1 : static_cast<float>((*end->seconds - *start->seconds) * 1e3);
    return CUDA_SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
