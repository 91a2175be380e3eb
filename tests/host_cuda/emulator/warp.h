// Barriers, warp shuffles and votes.
#pragma once

#include <cstring>

#include "runtime.h"

namespace hybrid::emulator {

enum class Shuffle { index, exchange, down, up };

inline int shuffle_source(Shuffle kind, int lane, int operand, int width) {
  operand &= kWarpSize - 1;               // as the hardware does
  const int first = lane & ~(width - 1);  // of the lane's segment
  switch (kind) {
    case Shuffle::index:
      return first + (operand & (width - 1));
    case Shuffle::exchange:
      return (lane ^ operand) < first + width ? lane ^ operand : lane;
    case Shuffle::down:
      return lane + operand < first + width ? lane + operand : lane;
    default:
      return lane - operand >= first ? lane - operand : lane;
  }
}

template <class T>
T shuffle(const char* op, Shuffle kind, uint32_t mask, T value, int operand, int width, Site site) {
  struct Input {
    T value;
    Shuffle kind;
    int operand, width;
  };
  const Input input{value, kind, operand, width};
  T result;
  const WarpFunction exchange = [](const void* const* in, void* const* out, int) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (!in[lane]) continue;
      const Input& mine = *static_cast<const Input*>(in[lane]);
      const int source = shuffle_source(mine.kind, lane, mine.operand, mine.width);
      if (in[source])
        *static_cast<T*>(out[lane]) = static_cast<const Input*>(in[source])->value;
      else  // the source lane is not in the mask: undefined on a GPU, so nothing sensible here
        memset(out[lane], 0xff, sizeof(T));
    }
  };
  if (width < 1 || width > kWarpSize || (width & (width - 1)))
    fail("shuffle: width is no power of two from 1 to 32", site);
  warp_collective(op, mask, &input, &result, 0, exchange, site);
  return result;
}

inline uint32_t ballot(const char* op, uint32_t mask, int predicate, Site site) {
  uint32_t result;
  const WarpFunction gather = [](const void* const* in, void* const* out, int) {
    uint32_t bits = 0;
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (in[lane] && *static_cast<const int*>(in[lane])) bits |= 1u << lane;
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (out[lane]) *static_cast<uint32_t*>(out[lane]) = bits;
  };
  warp_collective(op, mask, &predicate, &result, 0, gather, site);
  return result;
}

}  // namespace hybrid::emulator

inline void __syncthreads(HYBRID_CALLER) { hybrid::emulator::block_barrier(site); }
inline int __syncthreads_count(int predicate, HYBRID_CALLER) {
  return hybrid::emulator::block_vote(hybrid::emulator::Vote::count, predicate, site);
}
inline int __syncthreads_and(int predicate, HYBRID_CALLER) {
  return hybrid::emulator::block_vote(hybrid::emulator::Vote::all, predicate, site);
}
inline int __syncthreads_or(int predicate, HYBRID_CALLER) {
  return hybrid::emulator::block_vote(hybrid::emulator::Vote::any, predicate, site);
}
inline void __syncwarp(uint32_t mask = hybrid::emulator::kFullMask, HYBRID_CALLER) {
  hybrid::emulator::warp_collective("__syncwarp", mask, nullptr, nullptr, 0, nullptr, site);
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, HYBRID_CALLER) {
  using namespace hybrid::emulator;
  return shuffle("__shfl_sync", Shuffle::index, mask, value, lane, width, site);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, HYBRID_CALLER) {
  using namespace hybrid::emulator;
  return shuffle("__shfl_xor_sync", Shuffle::exchange, mask, value, bits, width, site);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, HYBRID_CALLER) {
  using namespace hybrid::emulator;
  return shuffle("__shfl_down_sync", Shuffle::down, mask, value, static_cast<int>(delta), width,
                 site);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, HYBRID_CALLER) {
  using namespace hybrid::emulator;
  return shuffle("__shfl_up_sync", Shuffle::up, mask, value, static_cast<int>(delta), width, site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, HYBRID_CALLER) {
  return hybrid::emulator::ballot("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(uint32_t mask, int predicate, HYBRID_CALLER) {
  return hybrid::emulator::ballot("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, HYBRID_CALLER) {
  return hybrid::emulator::ballot("__all_sync", mask, !predicate, site) == 0;
}
