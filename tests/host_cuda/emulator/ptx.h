// Emulation of the PTX wrappers of csrc/common/device.h; wrappers.cu holds them against the real
// ones on a GPU. The fragment layouts are explained there and in the PTX manual.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>

#include "runtime.h"

namespace hybrid {

template <class T>
struct Convert;  // csrc/common/device.h

namespace emulator {

inline void load_matrices(const char* op, uint32_t (&r)[4], const void* row, bool transpose,
                          Site site) {
  require_full_warp(op, site);
  if (reinterpret_cast<uintptr_t>(row) % 16)
    fail("ldmatrix: the row address is not 16-byte aligned", site);
  const WarpFunction load = [](const void* const* rows, void* const* out, int transpose) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto at = [&](int row, int column) -> uint32_t {
          return static_cast<const uint16_t*>(rows[matrix * 8 + row])[column];
        };
        const int g = lane / 4, t = lane % 4 * 2;
        const uint32_t low = transpose ? at(t, g) : at(g, t);
        const uint32_t high = transpose ? at(t + 1, g) : at(g, t + 1);
        static_cast<uint32_t*>(out[lane])[matrix] = low | high << 16;
      }
    }
  };
  warp_collective(op, kFullMask, row, &r, transpose, load, site);
}

// Element i (0 or 1) of a register that holds two 16-bit numbers.
template <class T>
float half_of(uint32_t pair, int i) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * i));
  T value;
  memcpy(static_cast<void*>(&value), &bits, sizeof bits);
  return Convert<T>::to_float(value);
}

}  // namespace emulator

inline float exp2_approx(float x) { return std::exp2(x); }

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, HYBRID_CALLER) {
  emulator::load_matrices("ldmatrix_x4", r, row, false, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, HYBRID_CALLER) {
  emulator::load_matrices("ldmatrix_x4_trans", r, row, true, site);
}

template <class T>
void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, HYBRID_CALLER) {
  using namespace emulator;
  struct Input {
    const uint32_t* a;
    uint32_t b[2];
  };
  const WarpFunction multiply = [](const void* const* in, void* const* out, int) {
    float A[16][16], B[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const Input& input = *static_cast<const Input*>(in[lane]);
      const int g = lane / 4, t = lane % 4 * 2;
      for (int i = 0; i < 2; ++i) {
        A[g][t + i] = half_of<T>(input.a[0], i);
        A[g + 8][t + i] = half_of<T>(input.a[1], i);
        A[g][t + 8 + i] = half_of<T>(input.a[2], i);
        A[g + 8][t + 8 + i] = half_of<T>(input.a[3], i);
        B[t + i][g] = half_of<T>(input.b[0], i);
        B[t + 8 + i][g] = half_of<T>(input.b[1], i);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int j = 0; j < 4; ++j) {
        const int row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][column];
        static_cast<float*>(out[lane])[j] += sum;
      }
    }
  };
  const Input input{a, {b0, b1}};
  require_full_warp("mma_16816", site);
  warp_collective("mma_16816", kFullMask, &input, &c, 0, multiply, site);
}

// The destination is garbage from now on; the data arrives at the wait that covers it. Whoever
// reads too early, or changes the source too early, sees it. Plain stores rather than memcpy:
// those the sanitizers check.
inline void cp_async16(void* dst, const void* src, int src_bytes, HYBRID_CALLER) {
  emulator::async_push(dst, src, src_bytes, site);
  for (int i = 0; i < 4; ++i) static_cast<uint32_t*>(dst)[i] = 0xffffffffu;
}

inline void cp_async_commit() { emulator::async_commit(); }

template <int N>
void cp_async_wait() {
  while (const emulator::AsyncCopy* copy = emulator::async_pop(N)) {
    auto* dst = static_cast<uint32_t*>(copy->dst);
    auto* src = static_cast<const uint32_t*>(copy->src);
    const int words = copy->src_bytes / 4;
    for (int i = 0; i < 4; ++i) dst[i] = i < words ? src[i] : 0;
    for (int i = words * 4; i < copy->src_bytes; ++i)
      reinterpret_cast<unsigned char*>(dst)[i] = reinterpret_cast<const unsigned char*>(src)[i];
  }
}

}  // namespace hybrid
