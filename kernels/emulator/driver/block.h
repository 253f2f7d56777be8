// Running a grid: blocks one after another, the threads of a block as fibers.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "emulator/runtime.h"

namespace emulator {

struct Kernel {
    std::string name;
    void (*function)();
    Invoke invoke;
    std::vector<Parameter> parameters;
    size_t parameter_bytes;
    bool sm90_alone;  // its file's name says so
};

// By name; null if there is none for the architecture.
Kernel* find_kernel(const char* name, int arch);

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    size_t dynamic_shared;
    std::vector<unsigned char> parameters;
    uint64_t seed;
};

// Runs all blocks. What a kernel does wrong is reported and ends the process.
void run_grid(const Launch& launch);

// "kernel K, block (x, y, z), thread (x, y, z)", or the name of the operation that runs, or nothing.
void describe_place(char* text, size_t size);

// For operations that are no kernels: named in the report of a bad access. Null when it is over.
void set_operation(const char* name);

// Whether device code, or an operation on device memory, runs.
bool device_runs();

constexpr size_t MAX_PARAMETER_BYTES = 4096;
constexpr size_t MAX_STATIC_SHARED = 48 << 10;
constexpr size_t MAX_SHARED = 227 << 10;
constexpr size_t RESERVED_SHARED = 1 << 10;
// Of a block, with the attribute set; `MAX_SHARED` is the most of any.
size_t max_shared_of_arch(int arch);

}  // namespace emulator
