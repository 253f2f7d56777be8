// One region: the static arrays from its start, each followed by a gap that must stay poison; the dynamic memory at its end.
#include "shared.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "block.h"

namespace emulator {
namespace {

constexpr size_t GAP = 128, SITES = 64, STATIC_BYTES = (MAX_STATIC_SHARED + SITES * (GAP + 16) + 65535) / 65536 * 65536;
constexpr size_t DYNAMIC_BYTES = 256 << 10, GUARD = 64 << 10, REGION = STATIC_BYTES + GUARD + DYNAMIC_BYTES + GUARD;
constexpr size_t MAX_ALIGN = 1024;

struct Site {
    const char* name;
    size_t begin, bytes;
};

unsigned char* region = nullptr;
size_t static_used = 0, static_bytes = 0, dynamic_bytes = 0, sites = 0;
unsigned char* dynamic = nullptr;  // where it begins, once the kernel has said how it is aligned
size_t dynamic_align = 0;
Site site_list[SITES];

void map_region() {
    void* all = mmap(nullptr, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) abort();
    region = static_cast<unsigned char*>(all);
    mprotect(region + STATIC_BYTES, GUARD, PROT_NONE);
    mprotect(region + REGION - GUARD, GUARD, PROT_NONE);
    memset(region, 0xff, STATIC_BYTES);
}

size_t round16(size_t n) { return (n + 15) / 16 * 16; }

// Addresses as instructions take them, below 256 KiB: dynamic memory from 1,024 on, aligned to no more than the kernel says;
// static memory after it.
unsigned dynamic_address() { return static_cast<unsigned>(1024 + (dynamic_align < MAX_ALIGN ? dynamic_align : 0)); }
unsigned static_address() { return static_cast<unsigned>((dynamic_bytes + 3 * MAX_ALIGN) / MAX_ALIGN * MAX_ALIGN); }

// Dynamic memory begins after the static arrays, aligned.
void check_sum(const char* name) {
    const size_t align = dynamic == nullptr ? 16 : dynamic_align;
    const size_t begin = dynamic_bytes == 0 ? static_bytes : (static_bytes + align - 1) / align * align;
    if (begin + dynamic_bytes > MAX_SHARED)
        fail("%zu bytes of static shared memory with `%s`, and %zu of dynamic memory aligned to %zu: %zu at most", static_bytes,
             name, dynamic_bytes, align, MAX_SHARED);
}

}  // namespace

void start_shared(size_t bytes) {
    if (region == nullptr) map_region();
    memset(region, 0xff, static_used);
    static_used = static_bytes = sites = 0;
    dynamic = nullptr;
    dynamic_bytes = round16(bytes);
    memset(region + REGION - GUARD - dynamic_bytes - MAX_ALIGN, 0xff, dynamic_bytes + MAX_ALIGN);
}

void shared_static(SharedSite& site, size_t bytes, const char* name) {
    const size_t rounded = round16(bytes);
    if (sites == SITES || static_bytes + rounded > MAX_STATIC_SHARED)
        fail("%zu bytes of static shared memory with `%s`, of %zu at most", static_bytes + rounded, name, MAX_STATIC_SHARED);
    site.block = block_serial;
    site.memory = region + static_used;
    site_list[sites++] = {name, static_used, bytes};
    static_bytes += rounded;
    check_sum(name);
    static_used += rounded + GAP;
}

void* shared_dynamic(size_t needed, size_t align) {
    if (needed > align) fail("dynamic shared memory of alignment %zu: it is aligned to %zu", needed, align);
    if (dynamic == nullptr) {
        dynamic = region + (REGION - GUARD - dynamic_bytes) / align * align;
        dynamic_align = align;
        check_sum(sites == 0 ? "none" : site_list[sites - 1].name);
    }
    if (align > dynamic_align) fail("dynamic shared memory aligned to %zu, and elsewhere to %zu", dynamic_align, align);
    return dynamic;
}

void check_shared() {
    for (size_t s = 0; s < sites; s++) {
        const size_t end = site_list[s].begin + site_list[s].bytes, next = round16(end) + GAP;
        for (size_t i = end; i < next; i++)
            if (region[i] != 0xff)
                fail("a write %zu bytes past the end of the shared array `%s`", i - end, site_list[s].name);
    }
    if (dynamic == nullptr) return;
    const unsigned char* end = dynamic + dynamic_bytes;
    for (const unsigned char* p = end; p < region + REGION - GUARD; p++)
        if (*p != 0xff) fail("a write %zu bytes past the end of dynamic shared memory", static_cast<size_t>(p - end));
}

bool is_shared(const void* pointer, size_t bytes) {
    const unsigned char* p = static_cast<const unsigned char*>(pointer);
    if (p < region || p >= region + REGION) return false;
    if (dynamic != nullptr && p >= dynamic && p + bytes <= dynamic + dynamic_bytes) return true;
    const size_t at = static_cast<size_t>(p - region);
    for (size_t s = 0; s < sites; s++)
        if (at >= site_list[s].begin && at + bytes <= site_list[s].begin + site_list[s].bytes) return true;
    return false;
}

unsigned shared_address(const void* pointer) {
    const unsigned char* p = static_cast<const unsigned char*>(pointer);
    if (p < region || p >= region + REGION) fail("%p is not shared memory", pointer);
    if (dynamic != nullptr && p >= dynamic) return dynamic_address() + static_cast<unsigned>(p - dynamic);
    return static_address() + static_cast<unsigned>(p - region);
}

unsigned char* shared_at(unsigned address, size_t bytes) {
    unsigned char* p = dynamic != nullptr && address < static_address() ? dynamic + address - dynamic_address()
                                                                        : region + address - static_address();
    return is_shared(p, bytes) ? p : nullptr;
}

}  // namespace emulator
