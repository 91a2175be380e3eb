// Small vector layer of the CPU kernels: F is a vector of kLanes floats in the instruction set that
// the file is compiled for. Arithmetic is written with +, -, * on F; the rest is here:
//
//   broadcast(x)                 max(a, b)  min(a, b): b where either is NaN
//   fma(a, b, c) = a * b + c
//   load(p)  store(p, v)         p: float, bf16 or f16, any alignment; 16-bit values are converted
//   load_first(p, n)  store_first(p, v, n)   touch n elements only; other lanes load as zero
//   stream(p, v)                 store v[0] (16-bit values: v[0] and v[1]) past the caches, where p
//                                is aligned to what is stored; stream_fence() when done
//   stream_one(p, v)             the same for a single vector of any type
//   store_both(p, v, w)          store v and, behind it, w
//   select_first(a, b, n)        a in the first n lanes, b in the others
//   select_positive(v, a, b)     a in the lanes where v > 0, b in the others
//   transpose(rows)              of kLanes vectors       sums(rows): lane i = sum of rows[i]
//   transpose_quads(rows)        of kLanes / 4 vectors, quads of lanes being the elements
//   sum(v)  largest(v)           over the lanes
//   exp2(v)  log2(v)             relative error about 1e-7; exp2 for v below 128
//
// A word is what fills one lane: a float, or (avx512_bf16) a pair of bf16 for dot_bf16.
#pragma once

#include "float16.h"

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_generic.h"
#endif

namespace hybrid {
namespace HYBRID_ISA {
namespace {

inline F zero() { return broadcast(0.f); }

template <class Int>
inline Int round_up_to_lanes(Int n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

// 2^f 2^n for f in [-1/2, 1/2], by a polynomial of degree 5, and n + 127 in the lowest bits of
// shifted: what remains of an exponential once its argument is split.
inline F scaled_power(F f, F shifted) {
  F p = broadcast(1.327645183e-03f);
  p = fma(p, f, broadcast(9.675541173e-03f));
  p = fma(p, f, broadcast(5.550713336e-02f));
  p = fma(p, f, broadcast(2.402211973e-01f));
  p = fma(p, f, broadcast(6.931469670e-01f));
  p = fma(p, f, broadcast(1.000000072f));
  return p * as_float(as_int(shifted) << 23);
}

#if !defined(__AVX512F__)  // has instructions for what follows

template <class T>
inline void store_both(T* p, F low, F high) {
  store(p, low);
  store(p + kLanes, high);
}

// 2^v = 2^n 2^fraction with n the nearest integer; the fraction in [-1/2, 1/2].
inline F exp2(F v) {
  v = max(broadcast(-126.f), v);
  const F magic = broadcast(0x1.8p23f + 127);  // its sum with v has n + 127 in the lowest bits
  const F shifted = v + magic, f = v - (shifted - magic);
  return scaled_power(f, shifted);
}

#endif

// log2(m 2^k) = k + log2(m) with m in [sqrt(1/2), sqrt(2)), by the series of artanh.
inline F log2(F x) {
  constexpr float kLog2E = 1.44269504f;
  const I shift = as_int(x) - 0x3f3504f3;  // exponent relative to that of sqrt(1/2)
  const I exponent = shift & static_cast<int32_t>(0xff800000u);
  const F m = as_float(as_int(x) - exponent);
  const F k = to_floats(exponent) * broadcast(0x1p-23f);
  const F s = (m - broadcast(1.f)) / (m + broadcast(1.f)), s2 = s * s;
  F series = broadcast(2.f / 9 * kLog2E);
  series = fma(series, s2, broadcast(2.f / 7 * kLog2E));
  series = fma(series, s2, broadcast(2.f / 5 * kLog2E));
  series = fma(series, s2, broadcast(2.f / 3 * kLog2E));
  series = fma(series, s2, broadcast(2.f * kLog2E));
  return fma(series, s, k) + (x - x);  // NaN and infinity give NaN
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
