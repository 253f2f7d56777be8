// What a kernel does wrong becomes a message that names the place, and the end of the process.
#pragma once

namespace emulator {

// While one lives, accesses to memory that is not there are reported with the kernel, block and thread that made them.
class FaultHandler {
 public:
    FaultHandler();
    ~FaultHandler();
    FaultHandler(const FaultHandler&) = delete;
    FaultHandler& operator=(const FaultHandler&) = delete;

 private:
    bool outermost_;
};

}  // namespace emulator
