// select_exceeding(v, w, a, b): a in the lanes where v > w, or where v is NaN and w is not; b in
// the others. So a running maximum keeps the first of equal values, and NaN is larger than every
// number. select_equal(v, w, a, b): a in the lanes where v == w, b in the others.
#pragma once

#include "arithmetic.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

#if defined(__AVX512F__)

inline F select_exceeding(F v, F w, F a, F b) {
  const __mmask16 exceeds = _mm512_cmp_ps_mask(v, w, _CMP_NLE_UQ);
  return _mm512_mask_blend_ps(exceeds & _mm512_cmp_ps_mask(w, w, _CMP_ORD_Q), b, a);
}
inline F select_equal(F v, F w, F a, F b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, w, _CMP_EQ_OQ), b, a);
}

#elif defined(__AVX2__)

inline F select_exceeding(F v, F w, F a, F b) {
  const F exceeds = _mm256_cmp_ps(v, w, _CMP_NLE_UQ), is_number = _mm256_cmp_ps(w, w, _CMP_ORD_Q);
  return _mm256_blendv_ps(b, a, _mm256_and_ps(exceeds, is_number));
}
inline F select_equal(F v, F w, F a, F b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(v, w, _CMP_EQ_OQ));
}

#else

inline F select_exceeding(F v, F w, F a, F b) {
  return select((v > w) | ((v != v) & (w == w)), a, b);
}
inline F select_equal(F v, F w, F a, F b) { return select(v == w, a, b); }

#endif

inline double select_exceeding(double v, double w, double a, double b) {
  return v > w || (v != v && w == w) ? a : b;
}
inline double select_equal(double v, double w, double a, double b) { return v == w ? a : b; }

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
