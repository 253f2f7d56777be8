// Products of warpgroups. The threads of a warpgroup call the same functions in the same order, each on its own: what the
// first of them calls is kept, what the others call is compared. A product may be done once all have called it, in order, at
// a drawn time; a wait that covers it has it done. Until a thread's wait its D is poison: the sums are kept beside, and given
// out by the wait.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <vector>

#include "block.h"
#include "emulator/hopper.h"
#include "emulator/runtime.h"
#include "product.h"
#include "proxy.h"
#include "threads.h"

namespace emulator {
namespace {

constexpr unsigned THREADS = 128, WARPGROUPS = MAX_THREADS / THREADS;

// D of all threads.
struct Sums {
    int n;
    float at[ROWS * MAX_COLUMNS];
};

struct Product {
    int n;
    bool a_in_registers, add, a_mn_major, b_mn_major;
    unsigned long long a, b;
    bool continues;  // adds to the sums of products that still run
    std::shared_ptr<Sums> sums;
    std::unique_ptr<unsigned short[]> rows = nullptr;  // A in registers, [64][16]
    unsigned fences = 0, calls = 0;

    bool same(const Product& o) const {
        return n == o.n && a_in_registers == o.a_in_registers && add == o.add && a_mn_major == o.a_mn_major &&
               b_mn_major == o.b_mn_major && a == o.a && b == o.b && continues == o.continues;
    }
};

// What a warpgroup's threads called. Products are numbered through.
struct Call {
    enum Kind { fence, product, commit, wait } kind;
    long number;  // of the product, or of groups that may be left
    unsigned calls;
};

struct Warpgroup {
    std::deque<Call> calls;
    long first_call = 0, first_product = 0;  // that is kept
    std::deque<Product> products;            // from the first that is not done
    long issued = 0;                         // by all threads
    bool fenced = false;
    unsigned left = 0;  // threads that have left the kernel
    std::vector<unsigned> waiting;
};

// A D whose products run.
struct Running {
    float* d;
    std::shared_ptr<Sums> sums;
    long last;  // product
};

struct Caller {
    long calls = 0, products = 0;
    std::deque<long> groups;  // ends of the committed ones that were not waited for
    long committed = 0;       // products
    std::vector<Running> running;
};

auto& warpgroups = *new std::vector<Warpgroup>(WARPGROUPS);
auto& callers = *new std::vector<Caller>(MAX_THREADS);
std::array<int, WARPGROUPS> registers;
bool used = true;

Warpgroup& group_of(unsigned thread) { return warpgroups[thread / THREADS]; }

const char* name(Call::Kind kind) {
    const char* const names[] = {"fence_products", "wgmma", "commit_products", "wait_products"};
    return names[kind];
}

void describe(const void*, unsigned group, char* text, size_t size) {
    const Warpgroup& w = warpgroups[group];
    const size_t next = static_cast<size_t>(w.issued - w.first_product);
    const unsigned calls = next < w.products.size() ? w.products[next].calls : 0;
    snprintf(text, size, " of warpgroup %u: of its %u threads %u have called the next product", group, THREADS, calls);
}

// The running thread's next call, which is its warpgroup's next one or the same as that of the threads before it. Whether it
// is the first thread there.
bool enter(Call::Kind kind, long number, Warpgroup& w, Caller& me) {
    const unsigned thread = thread_index();
    used = true;
    if (thread / THREADS * THREADS + THREADS > thread_count())
        fail("%s in a warpgroup of %u threads: it has %u", name(kind), thread_count() % THREADS, THREADS);
    const size_t at = static_cast<size_t>(me.calls++ - w.first_call);
    const bool first = at == w.calls.size();
    if (first && w.left != 0) fail("%s, but %u threads of the warpgroup have left the kernel", name(kind), w.left);
    if (first) w.calls.push_back({kind, number, 0});
    Call& call = w.calls[at];
    if (call.kind != kind || call.number != number)
        fail("%s (%ld), where other threads of the warpgroup call %s (%ld)", name(kind), number, name(call.kind), call.number);
    if (++call.calls == THREADS) {
        w.calls.pop_front();
        w.first_call++;
    }
    return first;
}

void perform(Product& p) {
    static float a[ROWS][DEPTH], b[DEPTH][MAX_COLUMNS];
    if (p.a_in_registers)
        for (int i = 0; i < ROWS * DEPTH; i++) a[i / DEPTH][i % DEPTH] = widen_bf16(p.rows[static_cast<size_t>(i)]);
    else
        decode_a(p.a, p.a_mn_major, p.fences, a);
    decode_b(p.b, p.b_mn_major, p.fences, p.n, b);
    if (!p.add) std::fill(p.sums->at, p.sums->at + ROWS * p.n, 0.0f);
    multiply(p.sums->at, a, b, p.n);
}

// Does the products up to this number, which all threads have called.
void perform_to(Warpgroup& w, long end) {
    while (w.first_product < end) {
        perform(w.products.front());
        w.products.pop_front();
        w.first_product++;
    }
}

// The place of d[i] in sums of n columns.
size_t place(unsigned thread, int n, int i) {
    const unsigned warp = thread % THREADS / 32, lane = thread % 32, e = static_cast<unsigned>(i);
    const unsigned row = 16 * warp + lane / 4 + e % 4 / 2 * 8, column = e / 4 * 8 + lane % 4 * 2 + e % 2;
    return row * static_cast<unsigned>(n) + column;
}

void keep_rows(Product& p, unsigned thread, const unsigned* a) {
    if (p.rows == nullptr) p.rows.reset(new unsigned short[ROWS * DEPTH]);
    const unsigned warp = thread % THREADS / 32, lane = thread % 32;
    for (unsigned w = 0; w < 4; w++)
        for (unsigned half = 0; half < 2; half++)
            p.rows[(16 * warp + lane / 4 + w % 2 * 8) * DEPTH + w / 2 * 8 + lane % 4 * 2 + half] =
                static_cast<unsigned short>(a[w] >> 16 * half);
}

void give_out(Running& r, unsigned thread) {
    for (int i = 0; i < r.sums->n / 2; i++) {
        unsigned bits;
        memcpy(&bits, r.d + i, 4);
        if (bits != ~0u) fail("d[%d] of a product was written before wait_products covered it", i);
        r.d[i] = r.sums->at[place(thread, r.sums->n, i)];
    }
}

}  // namespace

void start_products() {
    for (Warpgroup& w : warpgroups) w.left = 0;
    if (!used) return;
    for (Warpgroup& w : warpgroups) w = {};
    for (Caller& c : callers) c = {};
    registers.fill(0);
    used = false;
}

void wgmma(float* d, int n, const unsigned* a_registers, unsigned long long a, unsigned long long b, bool add, bool a_mn_major,
           bool b_mn_major) {
    const unsigned thread = thread_index();
    Warpgroup& w = group_of(thread);
    Caller& me = callers[thread];
    if (n < 8 || n > MAX_COLUMNS || n % 8 != 0) fail("a product of %d columns", n);
    const auto same_d = [d](const Running& r) { return r.d == d; };
    const auto running = std::find_if(me.running.begin(), me.running.end(), same_d);
    const bool continues = running != me.running.end();
    Product product{n, a_registers != nullptr, add, a_mn_major, b_mn_major, a_registers != nullptr ? 0 : a, b, continues,
                    nullptr};
    const long number = me.products++;
    if (enter(Call::product, number, w, me)) {
        check_descriptor(b, "B");
        if (a_registers == nullptr) check_descriptor(a, "A");
        // Sums that nobody but products has touched need no fence.
        if (!w.fenced && (!continues || a_registers != nullptr))
            fail("a product without fence_products since the warpgroup's last wait_products, or ever");
        if (continues && running->sums->n != n)
            fail("a product of %d columns to sums of %d columns that still run", n, running->sums->n);
        product.sums = continues ? running->sums : std::shared_ptr<Sums>(new Sums);
        product.sums->n = n;
        product.fences = fences();
        w.products.push_back(std::move(product));
    } else if (!w.products[static_cast<size_t>(number - w.first_product)].same(product)) {
        fail("a product of other operands (A %#llx, B %#llx, %d columns, add %d) than other threads of the warpgroup call", a,
             b, n, add);
    }
    Product& p = w.products[static_cast<size_t>(number - w.first_product)];
    if (a_registers != nullptr) keep_rows(p, thread, a_registers);
    if (continues) {
        if (running->sums != p.sums) fail("a product that continues other sums than other threads of the warpgroup do");
        running->last = number;
    } else {
        for (int i = 0; i < n / 2; i++) {
            if (add) p.sums->at[place(thread, n, i)] = d[i];
            memset(d + i, 0xff, sizeof *d);
        }
        me.running.push_back({d, p.sums, number});
    }
    if (++p.calls < THREADS) return;
    const long end = ++w.issued;
    for (const unsigned waiting : w.waiting) make_ready(waiting);
    w.waiting.clear();
    beside([&w, end] { perform_to(w, end); });
}

void wgmma_fence() {
    const unsigned thread = thread_index();
    Warpgroup& w = group_of(thread);
    if (enter(Call::fence, 0, w, callers[thread])) w.fenced = true;
}

void wgmma_commit() {
    const unsigned thread = thread_index();
    Caller& me = callers[thread];
    enter(Call::commit, 0, group_of(thread), me);
    me.groups.push_back(me.products);
    me.committed = me.products;
}

void wgmma_wait(int pending) {
    const unsigned thread = thread_index();
    Warpgroup& w = group_of(thread);
    Caller& me = callers[thread];
    if (enter(Call::wait, pending, w, me)) w.fenced = false;
    if (me.groups.size() <= static_cast<size_t>(pending)) return;
    const size_t groups = me.groups.size() - static_cast<size_t>(pending);
    const long end = me.groups[groups - 1];
    while (w.issued < end) {
        w.waiting.push_back(thread);
        suspend("wait_products", describe, nullptr, thread / THREADS);
    }
    perform_to(w, end);
    me.groups.erase(me.groups.begin(), me.groups.begin() + static_cast<ptrdiff_t>(groups));
    const auto done = [&](Running& r) {
        if (r.last >= end) return false;
        give_out(r, thread);
        return true;
    };
    me.running.erase(std::remove_if(me.running.begin(), me.running.end(), done), me.running.end());
}

void leave_products() {
    const unsigned thread = thread_index();
    Warpgroup& w = group_of(thread);
    w.left++;
    if (!used) return;
    const Caller& me = callers[thread];
    if (me.products > me.committed) fail("leaves the kernel with products that commit_products did not follow");
    if (!me.groups.empty()) fail("leaves the kernel without having waited for its products");
    const size_t at = static_cast<size_t>(me.calls - w.first_call);
    if (at < w.calls.size())
        fail("leaves the kernel, but other threads of its warpgroup have called %s", name(w.calls[at].kind));
}

void set_registers(int count, bool increase) {
    const unsigned thread = thread_index(), group = thread / THREADS, groups = thread_count() / THREADS;
    used = true;
    if (thread_count() % THREADS != 0)
        fail("setmaxnreg in a block of %u threads, which are not whole warpgroups", thread_count());
    if (count < 24 || count > 256 || count % 8 != 0)
        fail("setmaxnreg to %d registers: multiples of 8 from 24 to 256 are possible", count);
    // What the launch gives each thread: the block's share, in eights.
    const int share = std::min(65536 / static_cast<int>(thread_count()) / 8 * 8, 256);
    if (increase ? count < share : count > share)
        fail("setmaxnreg.%s to %d registers, of a share of %d", increase ? "inc" : "dec", count, share);
    registers[group] = count;
    int sum = 0;
    for (unsigned g = 0; g < groups; g++) sum += registers[g] == 0 ? 0 : registers[g];
    const bool all = std::all_of(registers.begin(), registers.begin() + groups, [](int r) { return r != 0; });
    if (all && sum > share * static_cast<int>(groups))
        fail("setmaxnreg: the warpgroups' registers, %d a thread in sum, are more than the %d that the block has", sum,
             share * static_cast<int>(groups));
}

}  // namespace emulator
