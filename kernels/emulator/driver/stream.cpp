#include "stream.h"

#include <algorithm>

#include "block.h"
#include "settings.h"

namespace emulator {
namespace {

// Never destroyed: threads may still call the driver while the process ends.
auto& streams = *new std::vector<std::shared_ptr<Stream>>;
auto& default_streams = *new std::vector<std::shared_ptr<Stream>>;

struct Later {
    std::vector<Ticket> after;
    std::function<void()> then;
};
auto& later = *new std::vector<Later>;

thread_local bool seeded = false;
thread_local Random thread_order;

// Each thread draws from the seed anew.
Random& order() {
    if (!seeded) thread_order.state = settings().seed;
    seeded = true;
    return thread_order;
}

void do_what_is_due() {
    for (size_t i = 0; i < later.size();) {
        if (!std::all_of(later[i].after.begin(), later[i].after.end(), is_done)) {
            i++;
            continue;
        }
        const auto then = std::move(later[i].then);
        later.erase(later.begin() + static_cast<ptrdiff_t>(i));
        then();
    }
}

bool may_run(const Stream& stream) {
    return !stream.queue.empty() && std::all_of(stream.queue.front().after.begin(), stream.queue.front().after.end(),
                                                [](const Ticket& t) { return is_done(t); });
}

void run_first(const std::shared_ptr<Stream>& stream) {
    // Out of the queue before it runs: the work may ask for the stream's state.
    const Stream::Queued item = std::move(stream->queue.front());
    stream->queue.pop_front();
    item.operation->work();
    stream->done = item.number;
}

// A stream whose first operation may run and has to before the ticket is done.
std::shared_ptr<Stream> on_the_way(const Ticket& ticket) {
    std::shared_ptr<Stream> stream = ticket.stream;
    while (!may_run(*stream)) {
        if (stream->queue.empty()) fail("a wait for work that was never queued");
        for (const Ticket& t : stream->queue.front().after)
            if (!is_done(t)) {
                stream = t.stream;
                break;
            }
    }
    return stream;
}

}  // namespace

uint64_t mix(uint64_t a, uint64_t b) { return Random{a ^ (b * 0xd6e8feb86659fd93u + 0x2545f4914f6cdd1du)}.next(); }

std::shared_ptr<Stream> new_stream(int device, bool blocking, bool is_default) {
    auto stream = std::make_shared<Stream>();
    stream->device = device;
    stream->blocking = blocking;
    stream->seed = order().next();
    stream->thread = std::this_thread::get_id();
    (is_default ? default_streams : streams).push_back(stream);
    return stream;
}

void retire(const std::shared_ptr<Stream>& stream) {
    run_until(last_of(stream));
    streams.erase(std::remove(streams.begin(), streams.end(), stream), streams.end());
}

void enqueue(const std::shared_ptr<Stream>& stream, Kind kind, std::function<void()> work, std::vector<Ticket> after) {
    auto operation = std::make_shared<Operation>(Operation{kind, std::move(work)});
    if (stream->capture != nullptr) {
        Graph& graph = *stream->capture->graph;
        graph.nodes.push_back({operation, stream->captured_last});
        stream->captured_last = {graph.nodes.size() - 1};
        return;
    }
    // The default stream comes after all that blocking streams have, and they after it.
    const bool is_default = std::find(default_streams.begin(), default_streams.end(), stream) != default_streams.end();
    if (is_default)
        for (const auto& s : streams)
            if (s->blocking && s->device == stream->device) after.push_back(last_of(s));
    if (!is_default && stream->blocking)
        for (const auto& s : default_streams)
            if (s->device == stream->device) after.push_back(last_of(s));
    stream->queue.push_back({++stream->queued, operation, std::move(after)});
    stream->thread = std::this_thread::get_id();
}

Ticket last_of(const std::shared_ptr<Stream>& stream) { return {stream, stream->queued}; }

bool is_done(const Ticket& ticket) { return ticket.stream == nullptr || ticket.stream->done >= ticket.number; }

void run_towards(const Ticket& ticket) {
    if (is_done(ticket)) return;
    // Every other time somebody else's turn, where somebody else can run.
    if ((order().next() & 1) != 0) {
        std::vector<std::shared_ptr<Stream>> ready;
        for (const auto& s : streams)
            if (s->thread == std::this_thread::get_id() && may_run(*s)) ready.push_back(s);
        if (!ready.empty()) {
            run_first(ready[order().below(static_cast<uint32_t>(ready.size()))]);
            return;
        }
    }
    run_first(on_the_way(ticket));
}

void run_until(const Ticket& ticket) {
    while (!is_done(ticket)) run_towards(ticket);
    do_what_is_due();
}

void run_device(int device) {
    const auto all = streams, defaults = default_streams;
    for (const auto* list : {&all, &defaults})
        for (const auto& s : *list)
            if (s->device == device) run_until(last_of(s));
}

void after_queued_work(std::function<void()> then) {
    Later item{{}, std::move(then)};
    for (const auto* list : {&streams, &default_streams})
        for (const auto& s : *list)
            if (!is_done(last_of(s))) item.after.push_back(last_of(s));
    later.push_back(std::move(item));
    do_what_is_due();
}

void run_graph(const Graph& graph) {
    std::vector<bool> done(graph.nodes.size(), false);
    for (size_t left = graph.nodes.size(); left > 0; left--) {
        std::vector<size_t> ready;
        size_t scanned = 0;
        // Nodes are in an order that works; a window of it is enough to draw from.
        for (size_t i = 0; i < graph.nodes.size() && scanned < 16; i++) {
            if (done[i]) continue;
            scanned++;
            const auto& after = graph.nodes[i].after;
            if (std::all_of(after.begin(), after.end(), [&](size_t a) { return done[a]; })) ready.push_back(i);
        }
        const size_t next = ready[order().below(static_cast<uint32_t>(ready.size()))];
        graph.nodes[next].operation->work();
        done[next] = true;
    }
}

}  // namespace emulator
