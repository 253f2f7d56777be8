// What sm_90 adds, for the host bodies of cu/common/{mbarrier,tma,wgmma}.cuh: barriers that count, copies of tiles, products of
// warpgroups. Copies and products run beside the threads, at times that are drawn.
#pragma once
#include "emulator/types.h"

#pragma GCC visibility push(default)
namespace emulator {

// driver/mbarrier.cpp. `word` is the barrier's 8 bytes of shared memory.
void mbarrier_init(void* word, unsigned arrivals);
void publish_mbarriers();
// One arrival, with `expected_bytes` of copies that belong to the phase.
void mbarrier_arrive(void* word, unsigned expected_bytes);
void mbarrier_wait(void* word, unsigned parity);

// driver/bulk.cpp. `map` is what cuTensorMapEncodeTiled made.
void tma_load(void* shared, const void* map, int row, int column, void* barrier);
void bulk_load(void* shared, const void* global, unsigned bytes, void* barrier);
void tma_store(const void* map, int row, int column, const void* shared);
void tma_commit();
// Until at most `pending` of the thread's groups of stores may still read shared memory.
void tma_wait(int pending);
// fence.proxy.async: copies and products see what this thread wrote to shared memory before.
void fence_async();

// driver/wgmma.cpp. One thread's part in a product of its warpgroup: D [64, n] (+)= A [64, 16] B [16, n]. `a_registers` are
// four words, or null where A is described by `a`.
void wgmma(float* d, int n, const unsigned* a_registers, unsigned long long a, unsigned long long b, bool add, bool a_mn_major,
           bool b_mn_major);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);
// setmaxnreg
void set_registers(int registers, bool increase);

}  // namespace emulator
#pragma GCC visibility pop
