// Barriers in shared memory that count arrivals of threads and bytes of copies (mbarrier, sm_90).
//
// A barrier is in phase 0 at first. A phase is complete when the number of arrivals given at the start has come, and every byte
// that was announced; then the next one begins. Who waits names the parity of the phase that it waits for: 0, 1, 0, 1 …
#pragma once
#include "common/base.cuh"

struct alignas(8) Mbarrier {
    unsigned long long word;
};

__device__ __forceinline__ unsigned shared_address(const void* shared) {
#ifdef __CUDACC__
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
#else
    return emulator::shared_address(shared);
#endif
}

// By one thread, before `publish_mbarriers` and a barrier of the block.
__device__ __forceinline__ void mbarrier_init(Mbarrier& barrier, unsigned arrivals) {
#ifdef __CUDACC__
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#else
    emulator::mbarrier_init(&barrier, arrivals);
#endif
}

// Makes initialized barriers known to copies; by the thread that initialized them.
__device__ __forceinline__ void publish_mbarriers() {
#ifdef __CUDACC__
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    emulator::publish_mbarriers();
#endif
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier& barrier) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#else
    emulator::mbarrier_arrive(&barrier, 0);
#endif
}

// Arrives and announces bytes of copies which belong to this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier& barrier, unsigned bytes) {
#ifdef __CUDACC__
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
#else
    emulator::mbarrier_arrive(&barrier, bytes);
#endif
}

// Waits until the phase of this parity is complete. What arrived threads wrote, and what was copied, may then be read.
__device__ __forceinline__ void mbarrier_wait(Mbarrier& barrier, unsigned parity) {
#ifdef __CUDACC__
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(&barrier)),
        "r"(parity)
        : "memory");
#else
    emulator::mbarrier_wait(&barrier, parity);
#endif
}

// A barrier of `threads` threads, whole warps, of number `id` from 1 to 15: some arrive and go on, others arrive and wait.
__device__ __forceinline__ void sync_named(int id, int threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulator::sync_named(id, threads);
#endif
}
__device__ __forceinline__ void arrive_named(int id, int threads) {
#ifdef __CUDACC__
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emulator::arrive_named(id, threads);
#endif
}
