// A fiber: a stack and a place to continue, switched to and from by hand.
#pragma once

#include <cstddef>

namespace hybrid::emulator {

struct Fiber {
  char* stack = nullptr;          // lowest usable address; null for the scheduler's own
  void* stack_pointer = nullptr;  // while it does not run
  void* tsan = nullptr;
  void* asan_fake_stack = nullptr;

  void allocate_stack();
  void free_stack();
  // The next switch to it calls `entry`, which must never return.
  void start_at(void (*entry)());
};

// Called by the scheduler; comes back when that fiber calls switch_back.
void switch_to(Fiber& fiber);
// Called by the running fiber; `for_good` when it will not be switched to again.
void switch_back(Fiber& running, bool for_good);
// The first thing that a fiber's entry calls.
void fiber_entered();

}  // namespace hybrid::emulator
