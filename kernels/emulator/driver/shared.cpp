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

struct Site {
    const char* name;
    size_t begin, bytes;
};

unsigned char* region = nullptr;
size_t static_used = 0, static_bytes = 0, dynamic_bytes = 0, sites = 0;
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

}  // namespace

void start_shared(size_t dynamic) {
    if (region == nullptr) map_region();
    memset(region, 0xff, static_used);
    static_used = static_bytes = sites = 0;
    dynamic_bytes = round16(dynamic);
    memset(region + REGION - GUARD - dynamic_bytes, 0xff, dynamic_bytes);
}

void shared_static(SharedSite& site, size_t bytes, const char* name) {
    const size_t rounded = round16(bytes);
    if (sites == SITES || static_bytes + rounded > MAX_STATIC_SHARED)
        fail("%zu bytes of static shared memory with `%s`, of %zu at most", static_bytes + rounded, name, MAX_STATIC_SHARED);
    if (static_bytes + rounded + dynamic_bytes > MAX_SHARED)
        fail("%zu bytes of static and %zu of dynamic shared memory, of %zu at most", static_bytes + rounded, dynamic_bytes,
             MAX_SHARED);
    site.block = block_serial;
    site.memory = region + static_used;
    site_list[sites++] = {name, static_used, bytes};
    static_bytes += rounded;
    static_used += rounded + GAP;
}

void* shared_dynamic(size_t align) {
    if (align > 16) fail("dynamic shared memory of alignment %zu: it is aligned to 16", align);
    return region + REGION - GUARD - dynamic_bytes;
}

void check_shared() {
    for (size_t s = 0; s < sites; s++) {
        const size_t end = site_list[s].begin + site_list[s].bytes, next = round16(end) + GAP;
        for (size_t i = end; i < next; i++)
            if (region[i] != 0xff)
                fail("a write %zu bytes past the end of the shared array `%s`", i - end, site_list[s].name);
    }
}

bool is_shared(const void* pointer, size_t bytes) {
    const unsigned char* p = static_cast<const unsigned char*>(pointer);
    if (p < region || p >= region + REGION) return false;
    const size_t at = static_cast<size_t>(p - region);
    for (size_t s = 0; s < sites; s++)
        if (at >= site_list[s].begin && at + bytes <= site_list[s].begin + site_list[s].bytes) return true;
    return at >= REGION - GUARD - dynamic_bytes && at + bytes <= REGION - GUARD;
}

unsigned shared_address(const void* pointer) {
    const unsigned char* p = static_cast<const unsigned char*>(pointer);
    if (p < region || p >= region + REGION) fail("%p is not shared memory", pointer);
    return static_cast<unsigned>(p - region);
}

void* shared_pointer(unsigned address) { return region + address; }

}  // namespace emulator
