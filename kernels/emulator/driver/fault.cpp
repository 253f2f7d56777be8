#include "fault.h"

#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block.h"
#include "fiber.h"
#include "memory.h"

namespace emulator {
namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction old_actions[4];
stack_t old_stack;
int depth = 0;
alignas(64) unsigned char handler_stack[64 << 10];

void print(const char* text) {
    const ssize_t written = write(STDERR_FILENO, text, strlen(text));
    (void)written;
}

void on_signal(int signal, siginfo_t* info, void*) {
    char place[256], what[320], line[640];
    describe_place(place, sizeof place);
    if (signal == SIGSEGV || signal == SIGBUS) {
        if (stack_overflowed(info->si_addr))
            snprintf(what, sizeof what, "the thread's stack of %zu KiB is full", STACK_BYTES >> 10);
        else
            describe_address(info->si_addr, what, sizeof what);
    } else {
        snprintf(what, sizeof what, "%s at %p", signal == SIGFPE ? "an integer division by zero" : "an illegal instruction",
                 info->si_addr);
    }
    snprintf(line, sizeof line, "emulator: %s: %s\n", place, what);
    print(line);
    _exit(134);
}

}  // namespace

// The handlers are in place only while device code runs: elsewhere a fault is the host program's own.
FaultHandler::FaultHandler() : outermost_(depth++ == 0) {
    if (!outermost_) return;
    stack_t stack = {};
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof handler_stack;
    sigaltstack(&stack, &old_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &old_actions[i]);
}

FaultHandler::~FaultHandler() {
    depth--;
    if (!outermost_) return;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &old_actions[i], nullptr);
    sigaltstack(&old_stack, nullptr);
}

void fail(const char* format, ...) {
    char place[256], what[1500], line[2048];
    describe_place(place, sizeof place);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "emulator: %s: %s\n", place, what);
    print(line);
    _exit(134);
}

}  // namespace emulator

// The kernels are compiled with checks of alignment and of the bounds of arrays (-fsanitize=alignment,bounds). These are the
// functions that the compiler calls where a check fails, so that no sanitizer library is needed.
namespace {
struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];
};
struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    unsigned char log_alignment, access;
};
struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor *array, *index;
};
}  // namespace

extern "C" {
__attribute__((visibility("default"))) void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, void* pointer) {
    if (pointer == nullptr)
        emulator::fail("an access through a null pointer (%s:%u)", data->location.file, data->location.line);
    emulator::fail("address %p of %s is not aligned to %u bytes (%s:%u)", pointer, data->type->name,
                   1u << data->log_alignment, data->location.file, data->location.line);
}
__attribute__((visibility("default"))) void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
    emulator::fail("index %lld is outside of %s (%s:%u)", static_cast<long long>(index), data->array->name,
                   data->location.file, data->location.line);
}
}
