// How copies and products see shared memory: not what threads wrote since they last fenced. Writes are not followed; bytes that
// differ from what a copy or product last saw or wrote there were written by a thread, and then some thread must have fenced
// in between.
#pragma once
#include <stddef.h>

namespace emulator {

void start_proxy();
// How many fences there were.
unsigned fences();
// 16 bytes at an address, aligned to that, as a copy or product that was issued after that many fences sees them. Reports
// what is missing.
const unsigned char* proxy_read(unsigned address, unsigned fences_at_issue, const char* what);
// They are about to be written by a copy.
unsigned char* proxy_write(unsigned address, const char* what);
void proxy_wrote(unsigned address);

}  // namespace emulator
