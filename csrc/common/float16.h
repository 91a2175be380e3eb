// The two 16-bit formats as plain values, for CPU code: conversions to and from float32, rounding
// to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>

namespace hybrid {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

namespace {  // compiled once per instruction set: see cpu_isa.h

inline uint32_t float_bits(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}

inline float bits_float(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

inline double to_float(double x) { return x; }
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits_float(uint32_t{x.bits} << 16); }

inline float to_float(f16 x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Moved into float32's place the exponent is too small by 112; multiplying mends that, for
  // subnormal numbers too. Infinity and NaN need the largest exponent.
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude << 13));
  return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <>
inline f16 from_float<f16>(float x) {
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u, u = float_bits(x) & 0x7fffffffu;
  uint32_t h;
  if (u > 0x7f800000u)
    h = 0x7e00u;
  else if (u >= 0x477ff000u)  // rounds to 65536 or beyond
    h = 0x7c00u;
  else if (u < 0x38800000u)  // subnormal: let an addition round at the right place
    h = float_bits(bits_float(u) + 0.5f) - float_bits(0.5f);
  else
    h = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
  return {static_cast<uint16_t>(sign | h)};
}

}  // namespace
}  // namespace hybrid
