#include "async.h"

#include <stdint.h>
#include <string.h>

#include "emulator/runtime.h"
#include "shared.h"
#include "threads.h"

namespace emulator {

void AsyncCopies::clear() {
    copies_.clear();
    group_ends_.clear();
}

void AsyncCopies::Copy::perform() const {
    if (zero)
        memset(shared, 0, bytes);
    else
        memcpy(shared, global, bytes);
}

void AsyncCopies::issue(void* shared, const void* global, int bytes, bool zero_fill, bool at_once) {
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("an asynchronous copy of %d bytes: 4, 8 and 16 are possible", bytes);
    const Copy copy{shared, global, static_cast<size_t>(bytes), zero_fill};
    if (reinterpret_cast<uintptr_t>(shared) % copy.bytes != 0 || reinterpret_cast<uintptr_t>(global) % copy.bytes != 0)
        fail("an asynchronous copy of %d bytes from %p to %p, which are not aligned to that", bytes, global, shared);
    if (!is_shared(shared, copy.bytes)) fail("an asynchronous copy to %p, which is not shared memory of the block", shared);
    if (at_once)
        copy.perform();
    else
        copies_.push_back(copy);
}

void AsyncCopies::commit() { group_ends_.push_back(copies_.size()); }

void AsyncCopies::wait(size_t pending_groups) {
    if (group_ends_.size() <= pending_groups) return;
    const auto groups = static_cast<ptrdiff_t>(group_ends_.size() - pending_groups);
    const size_t done = group_ends_[static_cast<size_t>(groups - 1)];
    for (size_t i = 0; i < done; i++) copies_[i].perform();
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<ptrdiff_t>(done));
    group_ends_.erase(group_ends_.begin(), group_ends_.begin() + groups);
    for (size_t& end : group_ends_) end -= done;
}

namespace {
auto& copies = *new std::vector<AsyncCopies>(MAX_THREADS);
}

void start_copies() {
    for (unsigned t = 0; t < thread_count(); t++) copies[t].clear();
}

// One copy in four is done now: one into memory that others still read must show, too.
void async_copy(void* shared, const void* global, int bytes, bool zero_fill) {
    copies[thread_index()].issue(shared, global, bytes, zero_fill, block_random().below(4) == 0);
}
void async_commit() { copies[thread_index()].commit(); }
void async_wait(int pending_groups) {
    copies[thread_index()].wait(pending_groups < 0 ? 0 : static_cast<size_t>(pending_groups));
}
void async_wait_all() {
    async_commit();
    async_wait(0);
}

}  // namespace emulator
