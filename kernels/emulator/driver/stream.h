// Streams as lazy queues: work runs when somebody waits for it, and streams that no event orders take turns in a drawn
// order.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "random.h"

namespace emulator {

enum class Kind { kernel, copy, fill, event, graph, library };

struct Operation {
    Kind kind;
    std::function<void()> work;
};

// Captured operations; each comes after the ones (all earlier in the list) that it depends on.
struct Graph {
    struct Node {
        std::shared_ptr<Operation> operation;
        std::vector<size_t> after;
    };
    std::vector<Node> nodes;
};

struct Stream;

struct Capture {
    std::shared_ptr<Graph> graph;
    Stream* origin;
    int mode;
    std::thread::id thread;
    std::vector<std::shared_ptr<Stream>> members;
    bool invalid = false;
};

// Work of a stream up to and including a number.
struct Ticket {
    std::shared_ptr<Stream> stream;
    uint64_t number = 0;
};

struct Stream {
    struct Queued {
        uint64_t number;
        std::shared_ptr<Operation> operation;
        std::vector<Ticket> after;
    };
    int device = 0;
    bool blocking = false;  // ordered with the default stream
    std::deque<Queued> queue;
    uint64_t queued = 0, done = 0;
    uint64_t seed = 0;       // of the next launch
    std::thread::id thread;  // that queued last
    std::shared_ptr<Capture> capture;
    std::vector<size_t> captured_last;  // nodes that what is captured next comes after
};

struct Event {
    bool timed;
    bool recorded = false;
    Ticket ticket;
    std::shared_ptr<double> seconds;
    std::shared_ptr<Capture> capture;
    std::vector<size_t> captured_at;
};

std::shared_ptr<Stream> new_stream(int device, bool blocking, bool is_default);
// The stream is forgotten once its work is done.
void retire(const std::shared_ptr<Stream>& stream);

// Appends to the stream, or to the graph that is captured from it.
void enqueue(const std::shared_ptr<Stream>& stream, Kind kind, std::function<void()> work, std::vector<Ticket> after = {});

Ticket last_of(const std::shared_ptr<Stream>& stream);
bool is_done(const Ticket& ticket);
// Runs until the ticket's work is done; some of the work that this thread queued on other streams runs in between. Threads
// do not run each other's work unless they have to, so that a test does the same beside other tests as alone.
void run_until(const Ticket& ticket);
// Runs one operation on the way to the ticket.
void run_towards(const Ticket& ticket);
// Runs all work of a device.
void run_device(int device);
// Calls `then` once all work that is queued now on any stream is done.
void after_queued_work(std::function<void()> then);

void run_graph(const Graph& graph);

uint64_t mix(uint64_t a, uint64_t b);

}  // namespace emulator
