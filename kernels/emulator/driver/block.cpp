// The threads of a block: who runs next, and where threads meet.
#include "block.h"

#include <stdlib.h>

#include <numeric>

#include "beside.h"
#include "fault.h"
#include "fiber.h"
#include "random.h"
#include "shared.h"
#include "threads.h"

namespace emulator {

Thread* current = nullptr;
uint3 block_index;
dim3 block_dim, grid_dim;
unsigned long long block_serial = 0;

namespace {

constexpr int LANES = 32, WARPS = 32, BARRIERS = 16, BUFFERS = LANES + 1;
constexpr size_t VALUE_BYTES = 128;

struct Fiber : Thread {
    Context context;
    unsigned warp;
    int held;              // the exchange buffer whose values this lane may still read, or -1
    const char* waits_at;  // for the report of a deadlock
    unsigned waits_mask;
    Describe describe;  // of what it waits for, if there is more to say
    const void* object;
    unsigned number;
};

// Lanes that wait for each other.
struct Group {
    unsigned mask, arrived;
    size_t size;  // of the values they exchange; 0 is a barrier
    int buffer;
};

struct Warp {
    unsigned ready, exited;
    int groups;
    Group group[LANES];
    int references[BUFFERS];
    unsigned char* buffers;
};

struct Barrier {
    unsigned arrived, expected;
    std::vector<Fiber*> waiting;
};

struct Block {
    const Launch* launch;
    unsigned threads, warps, exited;
    Fiber* fibers;
    Warp warp[WARPS];
    unsigned ready_warps;
    unsigned char priority[WARPS];
    bool by_priority;
    Barrier barrier[BARRIERS];
    unsigned votes;
    int vote_result;
    Context scheduler;
    Random random;
};

// Never destroyed: another thread may still run a kernel while the process ends.
Block& block = *new Block{};

const char* operation = nullptr;
auto& parameters = *new std::vector<void*>;  // of the launch that runs: where each lies in its bytes

Fiber* self() { return static_cast<Fiber*>(current); }
Fiber* lane_of(unsigned warp, unsigned lane) { return &block.fibers[warp * LANES + lane]; }

void make_ready(unsigned warp, unsigned lanes) {
    block.warp[warp].ready |= lanes;
    block.ready_warps |= 1u << warp;
}

[[noreturn]] void report_deadlock() {
    std::string waits;
    int shown = 0;
    const Fiber* last = nullptr;
    for (unsigned t = 0; t < block.threads; t++) {
        const Fiber& f = block.fibers[t];
        if (f.waits_at == nullptr) continue;
        if (last != nullptr && f.waits_at == last->waits_at && f.waits_mask == last->waits_mask &&
            f.object == last->object && f.number == last->number)
            continue;
        last = &f;
        if (shown++ == 8) break;
        char line[320], more[160] = "";
        if (f.describe != nullptr)
            f.describe(f.object, f.number, more, sizeof more);
        else
            snprintf(more, sizeof more, ", lanes %08x", f.waits_mask);
        snprintf(line, sizeof line, "\n  thread (%u, %u, %u) waits at %s%s", f.index.x, f.index.y, f.index.z, f.waits_at, more);
        waits += line;
    }
    current = nullptr;
    fail("deadlock: %u of %u threads have left, all others wait:%s", block.exited, block.threads, waits.c_str());
}

// The first set bit from bit `turn` on, around the end.
unsigned first_from(unsigned bits, unsigned turn) {
    const unsigned turned = bits >> turn | bits << ((LANES - turn) % LANES);
    return (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % LANES;
}

// A ready thread, drawn: from any warp, or from the first warp of this block's order, so that a warp also runs far ahead of
// the others.
Fiber* pick() {
    if (works_beside()) sometimes_beside();
    while (block.ready_warps == 0)
        if (!one_beside()) return nullptr;
    unsigned w;
    const uint64_t draw = block.random.next();
    if (block.by_priority) {
        unsigned i = 0;
        while ((block.ready_warps >> block.priority[i] & 1u) == 0) i++;
        w = block.priority[i];
    } else {
        w = first_from(block.ready_warps, static_cast<unsigned>(draw) % block.warps);
    }
    Warp& warp = block.warp[w];
    const unsigned lane = first_from(warp.ready, draw >> 32 & 31u);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) block.ready_warps &= ~(1u << w);
    return lane_of(w, lane);
}

// Leaves the running thread until somebody has made it ready.
void yield() {
    Fiber* me = self();
    Fiber* next = pick();
    if (next == nullptr) report_deadlock();
    if (next == me) return;
    current = next;
    switch_to(me->context, next->context);
}

void release(Barrier& barrier) {
    for (Fiber* f : barrier.waiting) {
        f->waits_at = nullptr;
        make_ready(f->warp, 1u << f->lane);
    }
    barrier.waiting.clear();
    barrier.arrived = 0;
    barrier.expected = 0;
}

// Threads that have left count as arrived at barrier 0, as on the device.
void try_release_block() {
    Barrier& all = block.barrier[0];
    if (all.arrived == 0 || all.arrived + block.exited < block.threads) return;
    block.vote_result = static_cast<int>(block.votes);
    block.votes = 0;
    release(all);
}

[[noreturn]] void thread_main() {
    block.launch->kernel->invoke(block.launch->kernel->function, parameters.data());
    leave_bulk();
    leave_products();
    Fiber* me = self();
    Warp& warp = block.warp[me->warp];
    warp.exited |= 1u << me->lane;
    block.exited++;
    for (int g = 0; g < warp.groups; g++)
        if (warp.group[g].mask >> me->lane & 1u)
            fail("leaves the kernel, but lanes %08x of its warp wait for lanes %08x, among them this one",
                 warp.group[g].arrived, warp.group[g].mask);
    try_release_block();
    Fiber* next = pick();
    if (next == nullptr) {
        if (block.exited < block.threads) report_deadlock();
        current = nullptr;
        switch_to(me->context, block.scheduler);
    } else {
        current = next;
        switch_to(me->context, next->context);
    }
    abort();
}

void waits(Fiber* fiber, const char* what, unsigned mask) {
    fiber->waits_at = what;
    fiber->waits_mask = mask;
    fiber->describe = nullptr;
    fiber->object = nullptr;
    fiber->number = 0;
}

int take_buffer(Warp& warp, size_t size) {
    int b = 0;
    while (warp.references[b] != 0) b++;
    memset(warp.buffers + static_cast<size_t>(b) * LANES * VALUE_BYTES, 0xff, LANES * size);
    return b;
}

// The running lane arrives at the group of its mask and waits; returns the group's buffer.
int meet(unsigned mask, const void* value, size_t size, const char* what) {
    Fiber* me = self();
    Warp& warp = block.warp[me->warp];
    if ((mask >> me->lane & 1u) == 0) fail("%s with the mask %08x, in which its own lane %u is not", what, mask, me->lane);
    if ((mask & warp.exited) != 0)
        fail("%s with the mask %08x, of which lanes %08x have left the kernel or do not exist", what, mask,
             mask & warp.exited);
    int g = 0;
    while (g < warp.groups && warp.group[g].mask != mask) g++;
    if (g == warp.groups) {
        const int buffer = size == 0 ? -1 : take_buffer(warp, size);
        if (buffer >= 0) warp.references[buffer] = __builtin_popcount(mask);
        warp.group[warp.groups++] = {mask, 0, size, buffer};
    }
    Group& group = warp.group[g];
    if (group.size != size)
        fail("%s (%zu bytes a lane), where other lanes of the mask %08x are at one of %zu bytes", what, size, mask,
             group.size);
    group.arrived |= 1u << me->lane;
    const int buffer = group.buffer;
    if (size != 0) memcpy(warp.buffers + (static_cast<size_t>(buffer) * LANES) * VALUE_BYTES + me->lane * size, value, size);
    waits(me, what, mask);
    if (group.arrived == mask) {
        warp.group[g] = warp.group[--warp.groups];
        for (unsigned lanes = mask; lanes != 0; lanes &= lanes - 1)
            lane_of(me->warp, static_cast<unsigned>(__builtin_ctz(lanes)))->waits_at = nullptr;
        make_ready(me->warp, mask);
    }
    yield();
    return buffer;
}

void wait_at(Barrier& barrier, const char* what) {
    Fiber* me = self();
    waits(me, what, 1u << me->lane);
    barrier.arrived++;
    barrier.waiting.push_back(me);
}

void start_block() {
    const dim3 d = block_dim;
    block.exited = 0;
    block.votes = 0;
    block.ready_warps = 0;
    for (Barrier& b : block.barrier) b.arrived = b.expected = 0, b.waiting.clear();
    for (unsigned w = 0; w < block.warps; w++) {
        Warp& warp = block.warp[w];
        const unsigned lanes = block.threads - w * LANES < LANES ? block.threads - w * LANES : LANES;
        const unsigned present = lanes == LANES ? ~0u : (1u << lanes) - 1;
        warp.groups = 0;
        warp.exited = ~present;
        memset(warp.references, 0, sizeof warp.references);
        warp.ready = 0;
        make_ready(w, present);
    }
    for (unsigned t = 0; t < block.threads; t++) {
        Fiber& f = block.fibers[t];
        f.index = {t % d.x, t / d.x % d.y, t / (d.x * d.y)};
        f.lane = t % LANES;
        f.warp = t / LANES;
        f.held = -1;
        f.waits_at = nullptr;
        // Tops at different offsets in a page: else all threads' frames compete for the same lines of the cache.
        unsigned char* stack = stack_bottom(t);
        prepare(f.context, stack, stack + STACK_BYTES - t * 320 % 4096, thread_main);
    }
    start_beside();
    start_copies();
    start_mbarriers();
    start_bulk();
    start_products();
    block.by_priority = (block.random.next() & 1) != 0;
    for (unsigned w = 0; w < block.warps; w++) {
        const unsigned at = block.random.below(w + 1);
        block.priority[w] = block.priority[at];
        block.priority[at] = static_cast<unsigned char>(w);
    }
}

}  // namespace

void run_grid(const Launch& launch) {
    if (block.fibers == nullptr) {
        block.fibers = new Fiber[WARPS * LANES];
        for (Warp& w : block.warp) w.buffers = static_cast<unsigned char*>(aligned_alloc(64, BUFFERS * LANES * VALUE_BYTES));
    }
    block.launch = &launch;
    block.random.state = launch.seed;
    block_dim = launch.block;
    grid_dim = launch.grid;
    block.threads = launch.block.x * launch.block.y * launch.block.z;
    block.warps = (block.threads + LANES - 1) / LANES;
    // Aligned as a tensor map is.
    alignas(128) static unsigned char bytes[MAX_PARAMETER_BYTES];
    memcpy(bytes, launch.parameters.data(), launch.parameters.size());
    parameters.clear();
    for (const Parameter& p : launch.kernel->parameters) parameters.push_back(bytes + p.offset);
    FaultHandler handler;
    // Every block once, in a drawn order: i * step + start modulo the number of blocks.
    const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    uint64_t step = blocks < 3 ? 1 : 1 + block.random.next() % (blocks - 1);
    while (std::gcd(step, blocks) != 1) step++;
    uint64_t at = block.random.next() % blocks;
    for (uint64_t i = 0; i < blocks; i++) {
        block_index = {static_cast<unsigned>(at % launch.grid.x), static_cast<unsigned>(at / launch.grid.x % launch.grid.y),
                       static_cast<unsigned>(at / launch.grid.x / launch.grid.y)};
        block_serial++;
        start_shared(launch.dynamic_shared);
        start_block();
        Fiber* first = pick();
        current = first;
        switch_to(block.scheduler, first->context);
        finish_bulk();
        finish_mbarriers();
        check_shared();
        at = (at + step) % blocks;
    }
    block.launch = nullptr;
}

void sync_block() {
    wait_at(block.barrier[0], "__syncthreads()");
    try_release_block();
    yield();
}

int sync_block_count(bool predicate) {
    block.votes += predicate;
    sync_block();
    return block.vote_result;
}

namespace {
Barrier& named(int id, int threads) {
    if (id < 1 || id >= BARRIERS || threads < LANES || threads % LANES != 0 ||
        static_cast<unsigned>(threads) > block.threads)
        fail("barrier %d of %d threads: there are barriers 1 to 15, of whole warps of the block", id, threads);
    Barrier& barrier = block.barrier[id];
    if (barrier.expected != 0 && barrier.expected != static_cast<unsigned>(threads))
        fail("barrier %d of %d threads, where others wait for %u", id, threads, barrier.expected);
    barrier.expected = static_cast<unsigned>(threads);
    return barrier;
}
}  // namespace

void sync_named(int id, int threads) {
    Barrier& barrier = named(id, threads);
    wait_at(barrier, "a named barrier");
    if (barrier.arrived == barrier.expected) release(barrier);
    yield();
}

void arrive_named(int id, int threads) {
    Barrier& barrier = named(id, threads);
    barrier.arrived++;
    if (barrier.arrived == barrier.expected) release(barrier);
}

unsigned thread_index() {
    const Fiber* me = self();
    return me->warp * LANES + me->lane;
}
unsigned thread_count() { return block.threads; }
Random& block_random() { return block.random; }

void suspend(const char* what, Describe describe, const void* object, unsigned number) {
    Fiber* me = self();
    waits(me, what, ~0u);
    me->describe = describe;
    me->object = object;
    me->number = number;
    yield();
}

void make_ready(unsigned thread) {
    block.fibers[thread].waits_at = nullptr;
    make_ready(thread / LANES, 1u << thread % LANES);
}

void sync_warp(unsigned mask) { meet(mask, nullptr, 0, "__syncwarp()"); }

unsigned live_lanes() { return ~block.warp[self()->warp].exited; }

const void* exchange_bytes(unsigned mask, const void* value, size_t size) {
    Fiber* me = self();
    Warp& warp = block.warp[me->warp];
    if (me->held >= 0) warp.references[me->held]--;
    me->held = -1;
    const int buffer = meet(mask, value, size, "a shuffle or vote");
    me->held = buffer;
    return warp.buffers + static_cast<size_t>(buffer) * LANES * VALUE_BYTES;
}

void set_operation(const char* name) { operation = name; }
bool device_runs() { return block.launch != nullptr || operation != nullptr; }

void describe_place(char* text, size_t size) {
    if (block.launch != nullptr && current != nullptr)
        snprintf(text, size, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u)", block.launch->kernel->name.c_str(),
                 block_index.x, block_index.y, block_index.z, current->index.x, current->index.y, current->index.z);
    else if (block.launch != nullptr)
        snprintf(text, size, "kernel %s, block (%u, %u, %u)", block.launch->kernel->name.c_str(), block_index.x,
                 block_index.y, block_index.z);
    else
        snprintf(text, size, "%s", operation == nullptr ? "outside of device code" : operation);
}

}  // namespace emulator
