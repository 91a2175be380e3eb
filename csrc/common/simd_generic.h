// simd.h in plain GCC/clang vectors of 16 bytes: SSE2, NEON and whatever else has them.
#pragma once

#include "float16.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int kLanes = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));

inline I as_int(F v) { return reinterpret_cast<I>(v); }
inline F as_float(I v) { return reinterpret_cast<F>(v); }
inline F to_floats(I v) { return __builtin_convertvector(v, F); }

inline F broadcast(float x) { return F{x, x, x, x}; }
inline F select(I mask, F a, F b) { return as_float((as_int(a) & mask) | (as_int(b) & ~mask)); }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F max(F a, F b) { return select(a > b, a, b); }
inline F min(F a, F b) { return select(a < b, a, b); }
inline float sum(F v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(F v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
inline F select_first(F a, F b, int n) { return select(I{0, 1, 2, 3} < n, a, b); }
inline F select_positive(F v, F a, F b) { return select(v > broadcast(0.f), a, b); }

inline F load(const float* p) {
  F v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, F v) { __builtin_memcpy(p, &v, sizeof v); }
inline void stream(float* p, const F* v) { store(p, v[0]); }
inline void stream_fence() {}

template <class T>
inline F load(const T* p) {
  return F{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <class T>
inline void store(T* p, F v) {
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<T>(v[i]);
}
template <class T>
inline void stream_one(T* p, F v) {
  store(p, v);
}
template <class T>
inline F load_first(const T* p, int n) {
  F v = broadcast(0.f);
  for (int i = 0; i < n; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
inline void store_first(T* p, F v, int n) {
  for (int i = 0; i < n; ++i) p[i] = from_float<T>(v[i]);
}
template <class T>
inline void stream(T* p, const F* v) {
  store(p, v[0]);
  store(p + kLanes, v[1]);
}

inline void transpose(F (&r)[4]) {
  const F a = {r[0][0], r[1][0], r[2][0], r[3][0]}, b = {r[0][1], r[1][1], r[2][1], r[3][1]};
  const F c = {r[0][2], r[1][2], r[2][2], r[3][2]}, d = {r[0][3], r[1][3], r[2][3], r[3][3]};
  r[0] = a, r[1] = b, r[2] = c, r[3] = d;
}

inline void transpose_quads(F (&)[1]) {}

inline F sums(const F (&r)[4]) {
  F t[4] = {r[0], r[1], r[2], r[3]};
  transpose(t);
  return (t[0] + t[2]) + (t[1] + t[3]);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
