// Activations and their derivatives on a vector (or a double), as PyTorch has them at the corners.
#pragma once

#include "activation.h"
#include "arithmetic.h"

namespace hybrid {

namespace HYBRID_ISA {
namespace {

template <class V>
inline V constant(double x);
template <>
inline F constant<F>(double x) {
  return broadcast(static_cast<float>(x));
}
template <>
inline double constant<double>(double x) {
  return x;
}

// a where v > 0, else b; b where v is NaN.
inline double select_positive(double v, double a, double b) { return v > 0 ? a : b; }

// Keeps a NaN.
template <class V>
inline V clamp(V v, double low, double high) {
  return -max(constant<V>(-high), -max(constant<V>(low), v));
}

// The normal distribution at x: the probability of less than x, and the density.
inline double normal(double x, double& density) {
  density = 0.3989422804014327 * __builtin_exp(-0.5 * x * x);
  return 0.5 * __builtin_erfc(-0.7071067811865476 * x);
}

// Abramowitz and Stegun 7.1.26, error 1.5e-7: erfc(z) = t p(t) e^(-z z) with t = 1 / (1 + c z).
inline F normal(F x, F& density) {
  const F size = max(x, -x), one = broadcast(1.f);
  const F bell = exp2(x * x * broadcast(-0.7213475204f));
  const F t = one / fma(size, broadcast(0.3275911f * 0.70710678f), one);
  F p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  const F tail = broadcast(0.5f) * p * t * bell;  // beyond |x|
  density = bell * broadcast(0.3989422804f);
  return select_positive(x, one - tail, tail);
}

struct NoActivation {
  template <class V>
  static V value(V t) {
    return t;
  }
  template <class V>
  static V derivative(V) {
    return constant<V>(1);
  }
};

struct Relu {
  template <class V>
  static V value(V t) {
    return max(constant<V>(0), t);
  }
  template <class V>
  static V derivative(V t) {
    return select_positive(t, constant<V>(1), constant<V>(0));
  }
};

struct Relu6 {
  template <class V>
  static V value(V t) {
    return clamp(t, 0, 6);
  }
  template <class V>
  static V derivative(V t) {
    const V zero = constant<V>(0);
    return select_positive(t, select_positive(constant<V>(6) - t, constant<V>(1), zero), zero);
  }
};

struct Gelu {
  template <class V>
  static V value(V t) {
    V density;
    return t * normal(t, density);
  }
  template <class V>
  static V derivative(V t) {
    V density;
    const V less = normal(t, density);
    return fma(t, density, less);
  }
};

struct Hardswish {
  template <class V>
  static V value(V t) {
    return t * clamp(t + constant<V>(3), 0, 6) * constant<V>(1. / 6);
  }
  template <class V>
  static V derivative(V t) {
    const V three = constant<V>(3), middle = fma(t, constant<V>(1. / 3), constant<V>(0.5));
    const V below = select_positive(three - t, middle, constant<V>(1));
    return select_positive(t + three, below, constant<V>(0));
  }
};

// call(activation{}) with the type of the activation.
template <class Call>
void for_activation(Activation activation, const Call& call) {
  switch (activation) {
    case Activation::none:
      return call(NoActivation{});
    case Activation::relu:
      return call(Relu{});
    case Activation::relu6:
      return call(Relu6{});
    case Activation::gelu:
      return call(Gelu{});
    case Activation::hardswish:
      return call(Hardswish{});
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
