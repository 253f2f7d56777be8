// Copies of whole tiles between global and shared memory by the copy engine (TMA, sm_90). One thread starts a copy; to shared
// memory it completes bytes of a barrier, to global memory the thread waits for its group.
//
// A tensor map describes a matrix [rows, columns] of bf16 and a box of it, at most 64 columns of 128 bytes: row r of the box lies
// at 128 r, its chunk c of 16 bytes at place c ^ (r % 8) (128-byte swizzle; the tile is aligned to 1,024 bytes). Parts of
// a box that are outside of the matrix are read as zeros, and not written.
#pragma once
#include "common/mbarrier.cuh"

// A CUtensorMap, made by the host; a kernel's parameter is `const __grid_constant__ TensorMap`.
struct alignas(128) TensorMap {
    unsigned char opaque[128];
};

__device__ __forceinline__ void tma_prefetch(const TensorMap& map) {
#ifdef __CUDACC__
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#else
    (void)map;
#endif
}

// The box whose first element is (row, column) to `shared`; its bytes, all of the box, arrive at `barrier`.
__device__ __forceinline__ void tma_load(void* shared, const TensorMap& map, int row, int column, Mbarrier& barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(shared)),
                 "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
                 : "memory");
#else
    emulator::tma_load(shared, &map, row, column, &barrier);
#endif
}

// `bytes` in a row; all three are multiples of 16.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier& barrier) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
#else
    emulator::bulk_load(shared, global, bytes, &barrier);
#endif
}

// Shared memory to the box at (row, column). What other threads wrote is to be made visible by `fence_async` in each of them and
// a barrier.
__device__ __forceinline__ void tma_store(const TensorMap& map, int row, int column, const void* shared) {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column), "r"(row),
                 "r"(shared_address(shared))
                 : "memory");
#else
    emulator::tma_store(&map, row, column, shared);
#endif
}

// Ends the group of the thread's stores so far.
__device__ __forceinline__ void commit_stores() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
    emulator::tma_commit();
#endif
}

// Waits until of the thread's groups at most PENDING, the latest, may still read shared memory.
template <int PENDING>
__device__ __forceinline__ void wait_stores_read() {
#ifdef __CUDACC__
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#else
    emulator::tma_wait(PENDING);
#endif
}

// Makes this thread's plain writes of shared memory visible to copies and to wgmma, which read it by another way.
__device__ __forceinline__ void fence_async() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulator::fence_async();
#endif
}
