// Stacks that are switched by hand.
#pragma once
#include <stddef.h>

namespace emulator {

constexpr size_t STACK_BYTES = 256 << 10;

// A place to continue at. `switch_to` saves the running one and continues the other.
struct Context {
    void* stack_pointer = nullptr;
};
void switch_to(Context& from, Context& to);

// Makes `context` start `entry` on the stack that ends at `top`. `entry` never returns.
void prepare(Context& context, unsigned char* bottom, unsigned char* top, void (*entry)());

// The stack of fiber i, with a page below it that no one may touch. Stacks are kept for the next block.
unsigned char* stack_bottom(unsigned i);

// Whether the address lies in the guard page of a stack.
bool stack_overflowed(const void* address);

}  // namespace emulator
