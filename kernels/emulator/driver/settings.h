// What the environment says about the device that is emulated.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulator {

struct Settings {
    uint64_t seed;  // EMULATOR_SEED: of every order that is drawn
    size_t memory;  // EMULATOR_MEMORY: bytes of a device
    int driver;     // EMULATOR_DRIVER: 13000 is CUDA 13.0
    int devices;    // EMULATOR_DEVICES, or as many as there are architectures
    int archs[64];  // EMULATOR_ARCH: 90 is sm_90; `90,80`, and the last of them for all other devices
    bool even;      // EMULATOR_EVEN_TIMES=1: between two events lies one millisecond, so that no choice depends on a load
};
const Settings& settings();

// EMULATOR_FAIL="cuMemAlloc_v2:5,cuLaunchKernel:1:700": the 5th and the 1st call fail; with 700, else with 2 (out of memory)
// for allocations and 999 (unknown) for others. 0 if this call is to succeed.
int injected_failure(const char* function);

}  // namespace emulator
