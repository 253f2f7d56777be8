// What a kernel file needs in place of CUDA's headers when it is compiled as C++: the names of the language, the types, the
// intrinsics, and the launch. The threads of a block are fibers (driver/block.cpp); only what the kernels may use is here,
// so that a kernel which compiles for the emulator compiles for the device, too.
#pragma once
#include "emulator/types.h"
//
#include "emulator/bfloat16.h"
#include "emulator/hopper.h"
#include "emulator/runtime.h"
//
#include "emulator/intrinsics.h"
