// The context switch saves what a called function must preserve, on the stack that is left:
// nothing else survives a call anyway. ucontext would do a system call for each switch.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sanitizers.h"

// void hybrid_emulator_switch(void** save_stack_pointer, void* load_stack_pointer)
#if defined(__x86_64__)
asm(R"(
.text
.globl hybrid_emulator_switch
.hidden hybrid_emulator_switch
.type hybrid_emulator_switch, @function
hybrid_emulator_switch:
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
.size hybrid_emulator_switch, . - hybrid_emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl hybrid_emulator_switch
.hidden hybrid_emulator_switch
.type hybrid_emulator_switch, %function
hybrid_emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
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
.size hybrid_emulator_switch, . - hybrid_emulator_switch
)");
#else
#error "The host emulator has no context switch for this machine: add one (x86-64 and aarch64 do)."
#endif
extern "C" void hybrid_emulator_switch(void** save_stack_pointer, void* load_stack_pointer);

namespace hybrid::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 4096;  // below the stack: overflow faults instead of corrupting

Fiber scheduler;
const void* scheduler_stack;  // as AddressSanitizer knows it
size_t scheduler_stack_bytes;

}  // namespace

void Fiber::allocate_stack() {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    perror("host emulator: no memory for a thread's stack");
    abort();
  }
  stack = static_cast<char*>(memory) + kGuardBytes;
}

void Fiber::free_stack() {
  asan_unpoison(stack, kStackBytes);
  munmap(stack - kGuardBytes, kGuardBytes + kStackBytes);
  stack = nullptr;
}

void Fiber::start_at(void (*entry)()) {
  asan_unpoison(stack, kStackBytes);  // of the function calls that the last kernel never left
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
#if defined(__x86_64__)
  *--top = nullptr;  // where entry would return to; also aligns its stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  top -= 6;
  memset(top, 0, 6 * sizeof *top);
#else
  top -= 20;
  memset(top, 0, 20 * sizeof *top);
  top[11] = reinterpret_cast<void*>(entry);  // x30, the link register
#endif
  stack_pointer = top;
  asan_fake_stack = nullptr;
}

void switch_to(Fiber& fiber) {
  scheduler.tsan = tsan_this_fiber();
  asan_before_switch(&scheduler.asan_fake_stack, fiber.stack, kStackBytes);
  tsan_switch(fiber.tsan);
  hybrid_emulator_switch(&scheduler.stack_pointer, fiber.stack_pointer);
  asan_after_switch(scheduler.asan_fake_stack);
}

void switch_back(Fiber& running, bool for_good) {
  asan_before_switch(for_good ? nullptr : &running.asan_fake_stack, scheduler_stack,
                     scheduler_stack_bytes);
  tsan_switch(scheduler.tsan);
  hybrid_emulator_switch(&running.stack_pointer, scheduler.stack_pointer);
  asan_after_switch(running.asan_fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void fiber_entered() { asan_after_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes); }

}  // namespace hybrid::emulator
