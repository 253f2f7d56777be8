// The emulator's random numbers: where the device promises no order, one is drawn.
#pragma once
#include <stdint.h>

namespace emulator {

// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // Below `n`, n < 2^32.
    uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
};

}  // namespace emulator
