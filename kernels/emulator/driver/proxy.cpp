#include "proxy.h"

#include <string.h>

#include "emulator/hopper.h"
#include "emulator/runtime.h"
#include "shared.h"
#include "threads.h"

namespace emulator {
namespace {

constexpr unsigned SPACE = 256 << 10, CHUNK = 16;

unsigned char seen[SPACE];
unsigned seen_at[SPACE / CHUNK];  // the number of fences when
unsigned fenced = 0;
bool used = true;

unsigned char* chunk(unsigned address, const char* what) {
    unsigned char* p = address % CHUNK == 0 && address < SPACE ? shared_at(address, CHUNK) : nullptr;
    if (p == nullptr) fail("%s touches shared address %#x, which is no shared memory of the block", what, address);
    used = true;
    return p;
}

}  // namespace

void start_proxy() {
    fenced = 0;
    if (!used) return;
    memset(seen, 0xff, sizeof seen);
    memset(seen_at, 0, sizeof seen_at);
    used = false;
}

unsigned fences() { return fenced; }
void fence_async() { fenced++; }

const unsigned char* proxy_read(unsigned address, unsigned fences_at_issue, const char* what) {
    const unsigned char* p = chunk(address, what);
    if (memcmp(p, seen + address, CHUNK) == 0) return p;
    if (fences_at_issue <= seen_at[address / CHUNK])
        fail("%s reads shared address %#x, which a thread wrote without fence_async after it, or after this was issued", what,
             address);
    proxy_wrote(address);
    return p;
}

unsigned char* proxy_write(unsigned address, const char* what) { return chunk(address, what); }

void proxy_wrote(unsigned address) {
    memcpy(seen + address, shared_at(address, CHUNK), CHUNK);
    seen_at[address / CHUNK] = fenced;
}

}  // namespace emulator
