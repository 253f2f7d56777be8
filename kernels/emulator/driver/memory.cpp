#include "memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <deque>
#include <map>

#include "block.h"
#include "settings.h"

namespace emulator {
namespace {

struct Buffer {
    size_t bytes;
    Memory kind;
    int device;
    unsigned char* mapping;
    size_t mapped;
    bool live, given_up;
};

constexpr size_t GUARD = 64 << 10, POISON_FILE = 16 << 20, KEPT_AFTER_FREE = 256;

// Never destroyed: threads may still call the driver while the process ends.
auto& buffers = *new std::map<uintptr_t, Buffer>;  // by first address
auto& freed = *new std::deque<uintptr_t>;
size_t used[64];

// A file of poison, mapped privately wherever much of it is needed: pages that are never written then cost no memory.
int poison_file() {
    static const int file = [] {
        const int f = memfd_create("poison", MFD_CLOEXEC);
        if (f < 0 || ftruncate(f, POISON_FILE) != 0) return -1;
        void* p = mmap(nullptr, POISON_FILE, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
        if (p == MAP_FAILED) return -1;
        memset(p, 0xff, POISON_FILE);
        munmap(p, POISON_FILE);
        return f;
    }();
    return file;
}

bool make_poison(unsigned char* at, size_t bytes) {
    const bool lazily = bytes >= (4 << 20) && poison_file() >= 0;
    if (!lazily) {
        if (mprotect(at, bytes, PROT_READ | PROT_WRITE) != 0) return false;
        memset(at, 0xff, bytes);
        return true;
    }
    for (size_t done = 0; done < bytes; done += POISON_FILE) {
        const size_t n = bytes - done < POISON_FILE ? bytes - done : POISON_FILE;
        if (mmap(at + done, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poison_file(), 0) ==
            MAP_FAILED)
            return false;
    }
    return true;
}

// The buffer at or before the address.
std::map<uintptr_t, Buffer>::iterator before(uintptr_t address) {
    auto it = buffers.upper_bound(address);
    return it == buffers.begin() ? buffers.end() : std::prev(it);
}

}  // namespace

size_t capacity() { return settings().memory; }
size_t allocated(int device) { return used[device]; }

void* allocate(size_t bytes, Memory kind, int device) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), rounded = (bytes + 15) / 16 * 16;
    const size_t pages = (rounded + page - 1) / page * page, mapped = GUARD + pages + GUARD;
    if (rounded < bytes || mapped < bytes) return nullptr;
    if (kind == Memory::device && (rounded > capacity() || used[device] > capacity() - rounded)) return nullptr;
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    unsigned char* first = static_cast<unsigned char*>(mapping) + GUARD;
    if (!make_poison(first, pages)) {
        munmap(mapping, mapped);
        return nullptr;
    }
    if (kind == Memory::device) used[device] += rounded;
    unsigned char* start = first + pages - rounded;
    buffers[reinterpret_cast<uintptr_t>(start)] = {bytes,  kind, device, static_cast<unsigned char*>(mapping),
                                                   mapped, true, false};
    return start;
}

bool give_up(void* pointer, Memory kind) {
    const auto it = buffers.find(reinterpret_cast<uintptr_t>(pointer));
    if (it == buffers.end() || !it->second.live || it->second.given_up || it->second.kind != kind) return false;
    Buffer& b = it->second;
    b.given_up = true;
    if (kind == Memory::device) used[b.device] -= (b.bytes + 15) / 16 * 16;
    return true;
}

void release(void* pointer) {
    const auto it = buffers.find(reinterpret_cast<uintptr_t>(pointer));
    Buffer& b = it->second;
    b.live = false;
    mmap(b.mapping, b.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    freed.push_back(it->first);
    if (freed.size() > KEPT_AFTER_FREE) {
        const auto oldest = buffers.find(freed.front());
        freed.pop_front();
        munmap(oldest->second.mapping, oldest->second.mapped);
        buffers.erase(oldest);
    }
}

Memory kind_of(const void* pointer, size_t bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    const auto it = before(at);
    if (it == buffers.end() || !it->second.live || at - it->first > it->second.bytes ||
        bytes > it->second.bytes - (at - it->first))
        return Memory::none;
    return it->second.kind;
}

bool starts_in(const void* pointer, Memory kind) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    const auto it = before(at);
    return it != buffers.end() && it->second.live && it->second.kind == kind && at - it->first < it->second.bytes;
}

void describe_address(const void* address, char* text, size_t size) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(address);
    const int length = snprintf(text, size, "bad access at %p", address);
    const size_t room = size - static_cast<size_t>(length);
    char* end = text + length;
    auto it = before(at);
    const auto next = buffers.upper_bound(at);
    // The nearer of the buffer that begins before and the one that begins after.
    const bool inside_before = it != buffers.end() && at < it->first + it->second.bytes;
    if (next != buffers.end() && !inside_before &&
        (it == buffers.end() || next->first - at < at - (it->first + it->second.bytes)))
        it = next;
    if (it == buffers.end()) {
        snprintf(end, room, ": no buffer is near");
        return;
    }
    const Buffer& b = it->second;
    const char* kind = !b.live ? "freed buffer" : b.kind == Memory::pinned ? "pinned buffer" : "buffer";
    if (at < it->first)
        snprintf(end, room, ", %zu bytes before the %s of %zu bytes at %p", static_cast<size_t>(it->first - at), kind,
                 b.bytes, reinterpret_cast<void*>(it->first));
    else if (at >= it->first + b.bytes)
        snprintf(end, room, ", %zu bytes past the end of the %s of %zu bytes at %p",
                 static_cast<size_t>(at - it->first - b.bytes), kind, b.bytes, reinterpret_cast<void*>(it->first));
    else
        snprintf(end, room, ", byte %zu of the %s of %zu bytes at %p", static_cast<size_t>(at - it->first), kind, b.bytes,
                 reinterpret_cast<void*>(it->first));
}

}  // namespace emulator
