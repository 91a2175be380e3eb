// simd.h for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "float16.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int kLanes = 8;
using F = __m256;
typedef int32_t I __attribute__((vector_size(32)));

inline I as_int(F v) { return reinterpret_cast<I>(v); }
inline F as_float(I v) { return reinterpret_cast<F>(v); }
inline F to_floats(I v) { return _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(v)); }

inline F broadcast(float x) { return _mm256_set1_ps(x); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline float sum(F v) {
  const __m128 four = _mm256_castps256_ps128(v) + _mm256_extractf128_ps(v, 1);
  const __m128 two = four + _mm_movehl_ps(four, four);
  return _mm_cvtss_f32(two + _mm_movehdup_ps(two));
}
inline float largest(F v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ps(two, _mm_movehdup_ps(two)));
}

inline __m256i first_mask(int n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
inline F select_first(F a, F b, int n) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(first_mask(n)));
}
inline F select_positive(F v, F a, F b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
}

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_mask(n)); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store_first(float* p, F v, int n) { _mm256_maskstore_ps(p, first_mask(n), v); }
inline void stream(float* p, const F* v) { _mm256_stream_ps(p, v[0]); }
inline void stream_one(float* p, F v) { _mm256_stream_ps(p, v); }
inline void stream_fence() { _mm_sfence(); }

inline F widen(__m128i halves, bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
inline F widen(__m128i halves, f16) { return _mm256_cvtph_ps(halves); }
inline __m128i narrow(F v, f16) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
inline __m128i narrow(F v, bf16) {
  const __m256i u = _mm256_castps_si256(v), top = _mm256_srli_epi32(u, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, bias), 16);
  const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i bits = _mm256_blendv_epi8(rounded, quiet, nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}

template <class T>
inline F load(const T* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), T{});
}
template <class T>
inline F load_first(const T* p, int n) {
  __m128i halves = _mm_setzero_si128();
  __builtin_memcpy(&halves, p, n * sizeof(T));
  return widen(halves, T{});
}
template <class T>
inline void store(T* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v, T{}));
}
template <class T>
inline void stream_one(T* p, F v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow(v, T{}));
}
template <class T>
inline void store_first(T* p, F v, int n) {
  const __m128i halves = narrow(v, T{});
  __builtin_memcpy(p, &halves, n * sizeof(T));
}
template <class T>
inline void stream(T* p, const F* v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p),
                      _mm256_set_m128i(narrow(v[1], T{}), narrow(v[0], T{})));
}

inline void transpose(F (&r)[8]) {
  F t[8], u[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

inline void transpose_quads(F (&r)[2]) {
  const F low = _mm256_permute2f128_ps(r[0], r[1], 0x20);
  r[1] = _mm256_permute2f128_ps(r[0], r[1], 0x31);
  r[0] = low;
}

inline F sums(const F (&r)[8]) {
  F a[4], b[2];
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) a[i] = _mm256_hadd_ps(r[2 * i], r[2 * i + 1]);
#pragma GCC unroll 8
  for (int i = 0; i < 2; ++i) b[i] = _mm256_hadd_ps(a[2 * i], a[2 * i + 1]);
  return _mm256_permute2f128_ps(b[0], b[1], 0x20) + _mm256_permute2f128_ps(b[0], b[1], 0x31);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
