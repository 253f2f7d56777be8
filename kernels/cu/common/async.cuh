// Copies from global to shared memory that run beside the thread (cp.async, sm_80). A thread's copies are in groups: all that
// it issued since its last commit. What it copied it may read after the wait, others after a barrier that follows the wait.
#pragma once
#include "common/base.cuh"

// 16 bytes, both addresses aligned to that, past the first-level cache. Zeros, and nothing is read, unless `inside`.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool inside) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "l"(global),
                 "r"(inside ? 16 : 0)
                 : "memory");
#else
    emulator::async_copy(shared, global, 16, !inside);
#endif
}

// Ends the group of the copies issued so far.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::async_commit();
#endif
}

// Waits until at most PENDING of the thread's groups are unfinished: the latest ones.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    emulator::async_wait(PENDING);
#endif
}
