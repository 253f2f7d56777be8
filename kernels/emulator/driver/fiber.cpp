#include "fiber.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__)
// Saves what a called function must keep, and the stack pointer; the rest is the caller's by the calling convention.
asm(R"(
    .text
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, .-emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulator_switch, .-emulator_switch
)");
#else
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__) || defined(__aarch64__)
extern "C" void emulator_switch(void** save, void* load);

void switch_to(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

void prepare(Context& context, unsigned char*, unsigned char* top, void (*entry)()) {
#if defined(__x86_64__)
    // Six registers, then the address that `ret` takes; after it the stack pointer is 8 past a multiple of 16, as after a
    // call.
    constexpr size_t FRAME = 64, ENTRY = 48;
#else
    constexpr size_t FRAME = 160, ENTRY = 88;
#endif
    unsigned char* frame = top - FRAME;
    memset(frame, 0, FRAME);
    memcpy(frame + ENTRY, &entry, sizeof entry);
    context.stack_pointer = frame;
}
#else
void switch_to(Context& from, Context& to) {
    if (from.stack_pointer == nullptr) from.stack_pointer = calloc(1, sizeof(ucontext_t));
    swapcontext(static_cast<ucontext_t*>(from.stack_pointer), static_cast<ucontext_t*>(to.stack_pointer));
}

void prepare(Context& context, unsigned char* bottom, unsigned char* top, void (*entry)()) {
    if (context.stack_pointer == nullptr) context.stack_pointer = calloc(1, sizeof(ucontext_t));
    ucontext_t* c = static_cast<ucontext_t*>(context.stack_pointer);
    getcontext(c);
    c->uc_stack.ss_sp = bottom;
    c->uc_stack.ss_size = static_cast<size_t>(top - bottom);
    c->uc_link = nullptr;
    makecontext(c, entry, 0);
}
#endif

namespace {
constexpr unsigned STACKS = 1024;
constexpr size_t GUARD = 64 << 10;  // a multiple of every page size
unsigned char* stacks = nullptr;
}  // namespace

unsigned char* stack_bottom(unsigned i) {
    if (stacks == nullptr) {
        void* all =
            mmap(nullptr, STACKS * (GUARD + STACK_BYTES), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED) {
            perror("emulator: no memory for the threads' stacks");
            abort();
        }
        stacks = static_cast<unsigned char*>(all);
        for (unsigned s = 0; s < STACKS; s++)
            mprotect(stacks + s * (GUARD + STACK_BYTES) + GUARD, STACK_BYTES, PROT_READ | PROT_WRITE);
    }
    return stacks + i * (GUARD + STACK_BYTES) + GUARD;
}

bool stack_overflowed(const void* address) {
    const unsigned char* p = static_cast<const unsigned char*>(address);
    if (stacks == nullptr || p < stacks || p >= stacks + STACKS * (GUARD + STACK_BYTES)) return false;
    return static_cast<size_t>(p - stacks) % (GUARD + STACK_BYTES) < GUARD;
}

}  // namespace emulator
