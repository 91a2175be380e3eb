// Rows of head width between global memory, wherever each of them lies, and tiles in shared memory.
#pragma once

#include "cuda_tile.cuh"

namespace hybrid {
namespace {

// Gathers kRows rows of e elements into kParts tiles of kRows x LD elements, one behind the other,
// of which E columns count: zeros stand where rows or columns do not exist. address(row) is where
// the row of the first part lies; the parts (key and value, say) are part_stride elements apart.
// Asynchronous where rows can move by 16 bytes. `valid` is any address to point at instead of
// nothing. Unrolled loops would hold addresses in registers that the kernels lack.
template <int kRows, int E, int LD, int kParts = 1, class T, class Address>
__device__ __forceinline__ void copy_rows(T* tile, bool vector, int rows, int e, const T* valid,
                                          int64_t part_stride, const Address& address) {
  if (vector) {
    constexpr int kVector = 16 / sizeof(T), kChunks = E / kVector;
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks * kVector;
      const bool exists = row < rows && c < e;
      const T* from = exists ? address(row) + c : valid;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        cp_async16(tile + (part * kRows + row) * LD + c, from + part * part_stride,
                   exists ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * E; i += kThreads) {
      const int row = i / E, c = i % E;
      const bool exists = row < rows && c < e;
      const T* from = exists ? address(row) + c : valid;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        tile[(part * kRows + row) * LD + c] =
            exists ? from[part * part_stride] : Convert<T>::from_float(0.0f);
    }
  }
}

// Scatters the rows that this warp owns (G::warp_row) from a tile to address(row), unless null.
template <class G, class T, class Address>
__device__ __forceinline__ void store_own_rows(const T* tile, bool vector, int rows, int e,
                                               const Address& address) {
  constexpr int kVector = 16 / sizeof(T), kOwn = G::R / kWarps;
  if (vector) {
    constexpr int kChunks = G::E / kVector;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < kOwn * kChunks; i += 32) {
      const int row = G::warp_row(i / kChunks), c = i % kChunks * kVector;
      if (row >= rows || c >= e) continue;
      if (T* to = address(row))
        *reinterpret_cast<uint4*>(to + c) = *reinterpret_cast<const uint4*>(tile + row * G::LD + c);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < kOwn * G::E; i += 32) {
      const int row = G::warp_row(i / G::E), c = i % G::E;
      if (row >= rows || c >= e) continue;
      if (T* to = address(row)) to[c] = tile[row * G::LD + c];
    }
  }
}

}  // namespace
}  // namespace hybrid
