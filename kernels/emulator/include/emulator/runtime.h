// What kernels need of the emulator at run time: where the running thread is, barriers, the exchange of values in a warp,
// shared memory, asynchronous copies, and the table of kernels.
#pragma once
#include <type_traits>
#include <utility>

#include "emulator/types.h"

#pragma GCC visibility push(default)
namespace emulator {

// A thread of the block that runs. `current` changes at every barrier, shuffle and exit.
struct Thread {
    uint3 index;
    unsigned lane;
};
extern Thread* current;
extern uint3 block_index;
extern dim3 block_dim, grid_dim;

// __syncthreads() is barrier 0 with all threads of the block. Barriers 1 to 15 are those of `bar.sync id, threads` and
// `bar.arrive id, threads`.
void sync_block();
int sync_block_count(bool predicate);
void sync_named(int id, int threads);
void arrive_named(int id, int threads);

// All lanes in `mask` meet.
void sync_warp(unsigned mask);

// Lanes that run at present; the emulator runs them one by one, so only lanes that have left the kernel are told apart.
unsigned live_lanes();

const void* exchange_bytes(unsigned mask, const void* value, size_t size);

// All lanes in `mask` meet; the values that the 32 lanes gave, valid until this lane's next exchange. Lanes outside the mask
// read as poison.
template <class T>
const T* exchange(unsigned mask, T value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 128 && alignof(T) <= 16,
                  "a plain value of at most 128 bytes");
    return static_cast<const T*>(exchange_bytes(mask, &value, sizeof(T)));
}

// cp.async: `bytes` (4, 8 or 16) to shared memory, zeros if `zero_fill`; done at the latest when async_wait says so.
void async_copy(void* shared, const void* global, int bytes, bool zero_fill);
void async_commit();
// Waits until at most `pending_groups` of this thread's committed groups are unfinished.
void async_wait(int pending_groups);
// Waits for all copies of this thread, committed or not.
void async_wait_all();

// Shared memory of the block: one site a declaration, fresh and poisoned in each block.
struct SharedSite {
    unsigned long long block = 0;
    void* memory = nullptr;
};
extern unsigned long long block_serial;
void shared_static(SharedSite& site, size_t bytes, const char* name);
// `align` is what the declaration gives, `needed` what the type needs.
void* shared_dynamic(size_t needed, size_t align);

// The address of shared memory as the 32 bits that instructions take.
unsigned shared_address(const void* pointer);

struct Parameter {
    size_t offset, size;
};
using Invoke = void (*)(void (*kernel)(), void** parameters);
void register_kernel(const char* name, const char* file, void (*kernel)(), Invoke invoke, const Parameter* parameters,
                     size_t count);

template <class... P, size_t... I>
void invoke(void (*kernel)(), void** parameters, std::index_sequence<I...>) {
    (void)parameters;
    reinterpret_cast<void (*)(P...)>(kernel)(*static_cast<std::remove_cv_t<P>*>(parameters[I])...);
}

struct Registration {
    template <class... P>
    Registration(const char* name, const char* file, void (*kernel)(P...)) {
        static_assert((std::is_trivially_copyable<P>::value && ...), "parameters are copied as bytes");
        Parameter parameters[sizeof...(P) + 1] = {};
        size_t at = 0, count = 0;
        ((at = (at + alignof(P) - 1) / alignof(P) * alignof(P), parameters[count++] = {at, sizeof(P)}, at += sizeof(P)),
         ...);
        register_kernel(
            name, file, reinterpret_cast<void (*)()>(kernel),
            [](void (*f)(), void** p) { invoke<P...>(f, p, std::index_sequence_for<P...>()); }, parameters, count);
    }
};

}  // namespace emulator
#pragma GCC visibility pop

#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_dim)
#define gridDim (::emulator::grid_dim)
#define warpSize 32

#define EMULATOR_PASTE2(a, b) a##b
#define EMULATOR_PASTE(a, b) EMULATOR_PASTE2(a, b)
#define SHARED(type, name, dims)                                                                                          \
    using EMULATOR_PASTE(name, _shared_type) = type dims;                                                                 \
    static ::emulator::SharedSite EMULATOR_PASTE(name, _shared_site);                                                     \
    if (EMULATOR_PASTE(name, _shared_site).block != ::emulator::block_serial)                                             \
        ::emulator::shared_static(EMULATOR_PASTE(name, _shared_site), sizeof(EMULATOR_PASTE(name, _shared_type)), #name); \
    EMULATOR_PASTE(name, _shared_type) & name =                                                                           \
        *static_cast<EMULATOR_PASTE(name, _shared_type)*>(EMULATOR_PASTE(name, _shared_site).memory)
#define SHARED_DYNAMIC(type, name) type* name = static_cast<type*>(::emulator::shared_dynamic(alignof(type), 16))
#define SHARED_ALIGNED(type, name) type* name = static_cast<type*>(::emulator::shared_dynamic(alignof(type), 1024))
#define EXPORT(kernel) static const ::emulator::Registration EMULATOR_PASTE(kernel, _export)(#kernel, __FILE__, kernel);
