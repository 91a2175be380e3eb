// simd.h for AVX-512 (F, BW, VL, DQ), with dot_bf16 where AVX512_BF16 is there.
#pragma once

#include <immintrin.h>

#include "float16.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int kLanes = 16;
using F = __m512;
typedef int32_t I __attribute__((vector_size(64)));

inline I as_int(F v) { return reinterpret_cast<I>(v); }
inline F as_float(I v) { return reinterpret_cast<F>(v); }
inline F as_float(__m512i v) { return _mm512_castsi512_ps(v); }
inline __m512i as_bits(F v) { return _mm512_castps_si512(v); }
inline F to_floats(I v) { return _mm512_cvtepi32_ps(reinterpret_cast<__m512i>(v)); }

inline F broadcast(float x) { return _mm512_set1_ps(x); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline float sum(F v) { return _mm512_reduce_add_ps(v); }
inline float largest(F v) { return _mm512_reduce_max_ps(v); }

inline __mmask16 first_mask(int n) {
  return static_cast<__mmask16>(n >= kLanes ? 0xffffu : (1u << n) - 1);
}
inline F select_first(F a, F b, int n) { return _mm512_mask_blend_ps(first_mask(n), b, a); }
inline F select_positive(F v, F a, F b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ), b, a);
}

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_mask(n), p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store_first(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first_mask(n), v); }
inline void stream(float* p, const F* v) { _mm512_stream_ps(p, v[0]); }
inline void stream_one(float* p, F v) { _mm512_stream_ps(p, v); }
inline void stream_fence() { _mm_sfence(); }

inline F widen(__m256i halves, bf16) {
  return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline F widen(__m256i halves, f16) { return _mm512_cvtph_ps(halves); }
inline __m256i narrow(F v, f16) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
inline __m256i narrow(F v, bf16) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
  const __m512i u = as_bits(v), top = _mm512_srli_epi32(u, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, bias), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet));
#endif
}

template <class T>
inline F load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T{});
}
template <class T>
inline F load_first(const T* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first_mask(n), p), T{});
}
template <class T>
inline void store(T* p, F v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
}
template <class T>
inline void store_first(T* p, F v, int n) {
  _mm256_mask_storeu_epi16(p, first_mask(n), narrow(v, T{}));
}

template <class T>
inline void stream_one(T* p, F v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
}
inline __m512i narrow(F low, F high, f16) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low, f16{})), narrow(high, f16{}), 1);
}
inline __m512i narrow(F low, F high, bf16) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
#else
  return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low, bf16{})), narrow(high, bf16{}), 1);
#endif
}
template <class T>
inline void stream(T* p, const F* v) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), narrow(v[0], v[1], T{}));
}
template <class T>
inline void store_both(T* p, F low, F high) {
  _mm512_storeu_si512(p, narrow(low, high, T{}));
}
inline void store_both(float* p, F low, F high) {
  store(p, low);
  store(p + kLanes, high);
}

// 2^v = 2^floor(v) 2^fraction, the second factor by a polynomial of degree 5 on [0, 1).
inline F exp2(F v) {
  const F f = _mm512_reduce_ps(v, 0x09);  // v - floor(v)
  F p = broadcast(1.877573824e-03f);
  p = fma(p, f, broadcast(8.989346991e-03f));
  p = fma(p, f, broadcast(5.582631226e-02f));
  p = fma(p, f, broadcast(2.401536190e-01f));
  p = fma(p, f, broadcast(6.931530730e-01f));
  p = fma(p, f, broadcast(9.999999251e-01f));
  return _mm512_scalef_ps(p, v);
}

inline F unpack_low_pairs(F a, F b) {
  return as_float(_mm512_unpacklo_epi64(as_bits(a), as_bits(b)));
}
inline F unpack_high_pairs(F a, F b) {
  return as_float(_mm512_unpackhi_epi64(as_bits(a), as_bits(b)));
}

inline void transpose(F (&r)[16]) {
  F t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4) {
    r[i] = unpack_low_pairs(t[i], t[i + 2]);
    r[i + 1] = unpack_high_pairs(t[i], t[i + 2]);
    r[i + 2] = unpack_low_pairs(t[i + 1], t[i + 3]);
    r[i + 3] = unpack_high_pairs(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
    r[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
    r[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

inline void transpose_quads(F (&r)[4]) {
  const F a = _mm512_shuffle_f32x4(r[0], r[1], 0x44), b = _mm512_shuffle_f32x4(r[2], r[3], 0x44);
  const F c = _mm512_shuffle_f32x4(r[0], r[1], 0xee), d = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
  r[0] = _mm512_shuffle_f32x4(a, b, 0x88);
  r[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
  r[2] = _mm512_shuffle_f32x4(c, d, 0x88);
  r[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

inline F sums(const F (&r)[16]) {
  F a[8], b[4], c[2];
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_unpacklo_ps(r[i], r[i + 8]) + _mm512_unpackhi_ps(r[i], r[i + 8]);
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i)
    b[i] = unpack_low_pairs(a[i], a[i + 4]) + unpack_high_pairs(a[i], a[i + 4]);
#pragma GCC unroll 16
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_shuffle_f32x4(b[i], b[i + 2], 0x88) + _mm512_shuffle_f32x4(b[i], b[i + 2], 0xdd);
  const F mixed = _mm512_shuffle_f32x4(c[0], c[1], 0x88) + _mm512_shuffle_f32x4(c[0], c[1], 0xdd);
  const __m512i order = _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
  return _mm512_permutexvar_ps(order, mixed);
}

#if defined(__AVX512BF16__)

// exp2 to 3e-6 of its value, for what is rounded to bf16 anyway: a polynomial of degree 4.
inline F exp2_short(F v) {
  const F f = v - _mm512_roundscale_ps(v, 0x09);  // v - floor(v); reduce_ps takes twice the slots
  F p = broadcast(1.353416791e-02f);
  p = fma(p, f, broadcast(5.201146062e-02f));
  p = fma(p, f, broadcast(2.414427569e-01f));
  p = fma(p, f, broadcast(6.930038345e-01f));
  p = fma(p, f, broadcast(1.000002593e+00f));
  return _mm512_scalef_ps(p, v);
}

// acc + the product of each lane's pairs: a.low b.low + a.high b.high, exact products.
inline F dot_bf16(F acc, F a, F b) {
  return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

// n neighbouring elements as words; n beyond 32 counts as 32, the rest is zero.
inline F load_pairs(const bf16* p, int n) {
  const __mmask32 mask = n >= 32 ? ~0u : (1u << n) - 1;
  return as_float(_mm512_maskz_loadu_epi16(mask, p));
}

// Words (low[i], high[i]) of two rows of 32 elements: lanes 0..15 and 16..31.
inline void interleave_pairs(F low, F high, F& first, F& second) {
  const __m512i step = _mm512_set1_epi32(0x00010001);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index =
      _mm512_or_si512(_mm512_mullo_epi32(lane, step), _mm512_set1_epi32(0x00200000));
  const __m512i next = _mm512_add_epi16(index, _mm512_set1_epi16(16));
  first = as_float(_mm512_permutex2var_epi16(as_bits(low), index, as_bits(high)));
  second = as_float(_mm512_permutex2var_epi16(as_bits(low), next, as_bits(high)));
}

// Words (low[i], high[i]) of two vectors of bf16, one behind the other.
inline F pair_halves(__m512i both) {
  const __m512i step = _mm512_set1_epi32(0x00010001);
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index =
      _mm512_or_si512(_mm512_mullo_epi32(lane, step), _mm512_set1_epi32(0x00100000));
  return as_float(_mm512_permutexvar_epi16(index, both));
}

// Words (low[i], high[i]) of two vectors of floats, rounded to bf16.
inline F pack_pairs(F low, F high) { return pair_halves(narrow(low, high, bf16{})); }

// The same, and each vector by itself to memory.
inline F store_and_pack(bf16* low_row, F low, bf16* high_row, F high) {
  const __m512i both = narrow(low, high, bf16{});
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low_row), _mm512_castsi512_si256(both));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high_row), _mm512_extracti64x4_epi64(both, 1));
  return pair_halves(both);
}

#endif

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
