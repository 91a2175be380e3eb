// When results are better written past the caches: they would push out what is still to be read.
#pragma once

#include <cstdint>

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

constexpr int64_t kLine = 64;                       // bytes of a cache line
constexpr int64_t kStreamBytes = int64_t{8} << 20;  // of a result; smaller ones are read again soon

// Whether rows of `row` bytes, `bytes` in all, are many and fill whole lines. `places` holds all
// bits of the addresses that they are written to.
inline bool streams_rows(uintptr_t places, int64_t row, int64_t bytes) {
  return places % kLine == 0 && row % kLine == 0 && bytes >= kStreamBytes;
}

}  // namespace
}  // namespace hybrid
