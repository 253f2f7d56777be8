// Barriers in shared memory. A phase is complete when its arrivals have come and as many bytes as were announced.
#include "mbarrier.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <vector>

#include "emulator/runtime.h"
#include "shared.h"
#include "threads.h"

namespace emulator {
namespace {

constexpr unsigned MAX_ARRIVALS = (1u << 20) - 1;
constexpr int64_t MAX_BYTES = (1 << 20) - 1;

struct State {
    unsigned arrivals;     // of a phase
    unsigned pending;      // that this phase lacks
    int64_t bytes;         // announced in this phase and not arrived; negative if they came first
    unsigned phase;        // that is not complete, from 0
    unsigned initializer;  // the thread
    bool published;
    unsigned copied;  // phases until the last one that had bytes
    unsigned seen;    // phases that a thread saw complete
    std::vector<unsigned> waiting;
};

auto& barriers = *new std::map<unsigned, State>;  // of the block, by address

// What lies in a barrier's word while it is one.
uint64_t mark(unsigned address) { return 0x7265697272616200u ^ address; }

State& find(const void* word, const char* what) {
    const unsigned address = shared_address(word);
    const auto it = barriers.find(address);
    if (it == barriers.end()) fail("%s the mbarrier at shared address %#x, which was not initialized", what, address);
    uint64_t there;
    memcpy(&there, word, sizeof there);
    if (there != mark(address)) fail("%s the mbarrier at shared address %#x, which was overwritten", what, address);
    return it->second;
}

void describe(const void* word, unsigned parity, char* text, size_t size) {
    const unsigned address = shared_address(word);
    const State& s = barriers[address];
    snprintf(text, size, " at shared address %#x, parity %u: phase %u lacks %u of %u arrivals and %lld bytes", address, parity,
             s.phase, s.pending, s.arrivals, static_cast<long long>(s.bytes));
}

void check_bytes(const State& s, unsigned address) {
    if (s.bytes > MAX_BYTES || s.bytes < -MAX_BYTES)
        fail("the mbarrier at shared address %#x counts %lld bytes in a phase: up to %lld are possible", address,
             static_cast<long long>(s.bytes), static_cast<long long>(MAX_BYTES));
    if (s.pending == 0 && s.bytes < 0)
        fail("%lld bytes more than announced arrived at the mbarrier at shared address %#x in phase %u",
             static_cast<long long>(-s.bytes), address, s.phase);
}

void complete_if_done(State& s) {
    if (s.pending != 0 || s.bytes != 0) return;
    s.phase++;
    s.pending = s.arrivals;
    for (const unsigned thread : s.waiting) make_ready(thread);
    s.waiting.clear();
}

}  // namespace

void start_mbarriers() { barriers.clear(); }

void mbarrier_init(void* word, unsigned arrivals) {
    if (reinterpret_cast<uintptr_t>(word) % 8 != 0 || !is_shared(word, 8))
        fail("an mbarrier at %p, which is not 8 aligned bytes of shared memory", word);
    if (arrivals == 0 || arrivals > MAX_ARRIVALS)
        fail("an mbarrier of %u arrivals: 1 to %u are possible", arrivals, MAX_ARRIVALS);
    const unsigned address = shared_address(word);
    const auto it = barriers.find(address);
    if (it != barriers.end() && !it->second.waiting.empty())
        fail("initializes the mbarrier at shared address %#x, at which threads wait", address);
    barriers[address] = {arrivals, arrivals, 0, 0, thread_index(), false, 0, 0, {}};
    const uint64_t m = mark(address);
    memcpy(word, &m, sizeof m);
}

void publish_mbarriers() {
    for (auto& entry : barriers)
        if (entry.second.initializer == thread_index()) entry.second.published = true;
}

void mbarrier_arrive(void* word, unsigned expected_bytes) {
    State& s = find(word, "arrives at");
    const unsigned address = shared_address(word);
    if (s.pending == 0)
        fail("arrives at the mbarrier at shared address %#x, whose phase %u has its %u arrivals and lacks %lld bytes", address,
             s.phase, s.arrivals, static_cast<long long>(s.bytes));
    s.bytes += expected_bytes;
    s.pending--;
    check_bytes(s, address);
    complete_if_done(s);
}

void mbarrier_wait(void* word, unsigned parity) {
    if (parity > 1) fail("waits for parity %u of an mbarrier: it is 0 or 1", parity);
    // The phase before the first counts as complete.
    while ((find(word, "waits at").phase & 1) == parity) {
        find(word, "waits at").waiting.push_back(thread_index());
        suspend("an mbarrier", describe, word, parity);
    }
    State& s = find(word, "waits at");
    s.seen = s.phase;
}

void finish_mbarriers() {
    for (const auto& entry : barriers)
        if (entry.second.copied > entry.second.seen)
            fail("all threads have left, and none has waited for the copies to shared memory of phase %u of the mbarrier at "
                 "shared address %#x",
                 entry.second.copied - 1, entry.first);
}

void require_published(const void* word) {
    if (!find(word, "a copy completes").published)
        fail("a copy completes the mbarrier at shared address %#x, which was not made known by publish_mbarriers",
             shared_address(word));
}

void arrive_bytes(void* word, unsigned bytes) {
    State& s = find(word, "a copy completes");
    s.bytes -= bytes;
    s.copied = s.phase + 1;
    check_bytes(s, shared_address(word));
    complete_if_done(s);
}

}  // namespace emulator
