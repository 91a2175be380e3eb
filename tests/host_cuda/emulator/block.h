// The state of the thread block that is running. Inside the runtime only.
#pragma once

#include <cstdarg>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "sanitizers.h"

namespace hybrid::emulator {

enum class State { ready, at_barrier, at_collective, exited };

constexpr int kMaxAsyncCopies = 256;  // in flight per thread
constexpr int kMaxSharedArrays = 32;

inline size_t ceil_to(size_t value, size_t step) { return (value + step - 1) / step * step; }

struct Thread {
  uint3 index;
  int lane, warp;
  State state;
  Fiber fiber;

  // What it waits for.
  const char* op;
  Site site;
  int predicate;  // of a block vote
  uint32_t mask;
  const void* in;
  void* out;
  int argument;
  WarpFunction function;
  // One pair per lane: a lane that runs ahead must not hand its order to the others.
  Order arrived, released;

  // Queue of cp.async. Fixed arrays: a fiber that allocated would show up in the race detector.
  AsyncCopy copies[kMaxAsyncCopies];
  int first_copy, end_copy, group;

  int warp_begin() const { return warp * kWarpSize; }
};

struct SharedArray {
  const void* key;
  void* address;
};

struct Block {
  std::vector<Thread> threads;
  const std::function<void()>* body;

  // Shared memory: [static, kDefaultSharedLimit][dynamic][red zone].
  char* arena;
  char* dynamic;
  size_t dynamic_bytes, static_used;
  SharedArray arrays[kMaxSharedArrays];
  int array_count;

  int barrier_generation;
  int votes_true, votes;
  Order started, ended, barrier[2];  // barriers alternate: some threads may be one ahead

  size_t arena_bytes() const;
  void reset_shared_memory();  // to memory that nobody has written
  void free_shared_memory();
};

// The block and the thread that are running; one launch at a time.
extern Block* block;
extern Thread* self;

// Of the launch; the first message stands.
bool failed();
void set_error(const Thread& thread, Site site, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
[[noreturn]] void exit_thread();
// Hands the processor back until the scheduler picks this thread again.
void wait_in(State state);
// Called when no thread can run: opens the barrier, or reports why it never will.
void open_barrier();

}  // namespace hybrid::emulator
