// What the emulated device language needs of the runtime. Only declarations: kernels are compiled
// with the sanitizers, the runtime without the race detector, and no state is shared in between.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace hybrid::emulator {

// Where in the source an operation was called.
struct Site {
  const char* file;
  int line;
};
// The last parameter of every emulated operation: filled in at the caller.
#define HYBRID_CALLER ::hybrid::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

constexpr uint32_t kFullMask = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr size_t kDefaultSharedLimit = 48 * 1024;
constexpr size_t kSharedLimit = 227 * 1024;  // of sm_90, with the opt-in

// Of the CUDA thread that is running.
struct Indices {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Indices indices;

// The common part of everything that a warp does together. Each lane of `mask` arrives with its
// own in and out; the last to arrive calls `function` once for all. in[l] and out[l] are null for
// lanes outside the mask. A null function makes it a __syncwarp.
using WarpFunction = void (*)(const void* const* in, void* const* out, int argument);
void warp_collective(const char* op, uint32_t mask, const void* in, void* out, int argument,
                     WarpFunction function, Site site);
// Fails unless the calling thread's warp has all 32 threads, as .aligned PTX needs.
void require_full_warp(const char* op, Site site);

enum class Vote { count, all, any };
void block_barrier(Site site);
int block_vote(Vote vote, int predicate, Site site);

void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();

// cp.async: the runtime only keeps the queue; the copying is done by ptx.h, inside the kernel's
// own object file, so that the sanitizers see it.
struct AsyncCopy {
  void* dst;
  const void* src;
  int src_bytes;
  int group;
};
void async_push(void* dst, const void* src, int src_bytes, Site site);
void async_commit();
// Takes the next copy out of the groups older than the `keep` newest; null when there is none.
const AsyncCopy* async_pop(int keep);

// Ends the launch with this message, the place and the thread added.
[[noreturn]] void fail(const char* message, Site site);

// Both return 0 or the cudaError_t that a GPU would; hybrid_emulator_error() then says why.
int launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& body);
int shared_memory_opt_in(const void* kernel, size_t bytes);

}  // namespace hybrid::emulator

// Why the calling thread's latest launch failed; empty when it did not.
extern "C" __attribute__((visibility("default"))) const char* hybrid_emulator_error();
