// Rows of head width between global memory, wherever each of them lies, and tiles in shared memory.
#pragma once

#include "cuda_tile.cuh"

namespace hybrid {
namespace {

// Gathers kRows rows of e elements into kParts tiles of LD elements per row, kRows rows one behind
// the other, of which E columns count: zeros stand where rows or columns do not exist. Row i comes
// from address(i) and goes to row tile_row(i) of the tile; the parts (key and value, say) are
// part_stride elements apart. Asynchronous where rows can move by 16 bytes. `valid` is any address
// to point at instead of nothing. Unrolled loops would hold addresses in registers that the kernels
// lack. All threads of a block take part, or those of a warp: kTeam = 32.
template <int kRows, int E, int LD, int kParts, int kTeam, class T, class TileRow, class Address>
__device__ __forceinline__ void copy_rows_to(T* tile, bool vector, int rows, int e, const T* valid,
                                             int64_t part_stride, const TileRow& tile_row,
                                             const Address& address) {
  if (vector) {
    constexpr int kVector = 16 / sizeof(T), kChunks = E / kVector;
#pragma unroll 1
    for (int i = threadIdx.x % kTeam; i < kRows * kChunks; i += kTeam) {
      const int row = i / kChunks, c = i % kChunks * kVector;
      const bool exists = row < rows && c < e;
      const T* from = exists ? address(row) + c : valid;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        cp_async16(tile + (part * kRows + tile_row(row)) * LD + c, from + part * part_stride,
                   exists ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x % kTeam; i < kRows * E; i += kTeam) {
      const int row = i / E, c = i % E;
      const bool exists = row < rows && c < e;
      const T* from = exists ? address(row) + c : valid;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        tile[(part * kRows + tile_row(row)) * LD + c] =
            exists ? from[part * part_stride] : Convert<T>::from_float(0.0f);
    }
  }
}

// The same, row i to row i.
template <int kRows, int E, int LD, int kParts = 1, int kTeam = kThreads, class T, class Address>
__device__ __forceinline__ void copy_rows(T* tile, bool vector, int rows, int e, const T* valid,
                                          int64_t part_stride, const Address& address) {
  copy_rows_to<kRows, E, LD, kParts, kTeam>(
      tile, vector, rows, e, valid, part_stride, [](int row) { return row; }, address);
}

// A warp scatters kRows rows of a tile, those that tile_row(i) names, to address(row), unless null.
template <int kRows, int E, int LD, class T, class TileRow, class Address>
__device__ __forceinline__ void store_rows(const T* tile, bool vector, int rows, int e,
                                           const TileRow& tile_row, const Address& address) {
  constexpr int kVector = 16 / sizeof(T);
  if (vector) {
    constexpr int kChunks = E / kVector;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < kRows * kChunks; i += 32) {
      const int row = tile_row(i / kChunks), c = i % kChunks * kVector;
      if (row >= rows || c >= e) continue;
      if (T* to = address(row))
        *reinterpret_cast<uint4*>(to + c) = *reinterpret_cast<const uint4*>(tile + row * LD + c);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < kRows * E; i += 32) {
      const int row = tile_row(i / E), c = i % E;
      if (row >= rows || c >= e) continue;
      if (T* to = address(row)) to[c] = tile[row * LD + c];
    }
  }
}

// The rows that this warp owns (G::warp_row).
template <class G, class T, class Address>
__device__ __forceinline__ void store_own_rows(const T* tile, bool vector, int rows, int e,
                                               const Address& address) {
  store_rows<G::R / kWarps, G::E, G::LD>(
      tile, vector, rows, e, [](int i) { return G::warp_row(i); }, address);
}

}  // namespace
}  // namespace hybrid
