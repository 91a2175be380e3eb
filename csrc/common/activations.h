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
  return min(constant<V>(high), max(constant<V>(low), v));
}

// The normal distribution at x: the probability of less than x, and the density.
inline double normal(double x, double& density) {
  density = 0.3989422804014327 * __builtin_exp(-0.5 * x * x);
  return 0.5 * __builtin_erfc(-0.7071067811865476 * x);
}

// x p(x^2) / q(x^2), coefficients of 1 first, with x^2 no larger than `end`^2.
template <int kP, int kQ>
inline F odd_ratio(F x, const float (&p)[kP], const float (&q)[kQ], float end) {
  const F square = min(broadcast(end * end), x * x);
  F above = broadcast(p[kP - 1]), below = broadcast(q[kQ - 1]);
#pragma GCC unroll 8
  for (int i = kP - 2; i >= 0; --i) above = fma(above, square, broadcast(p[i]));
#pragma GCC unroll 8
  for (int i = kQ - 2; i >= 0; --i) below = fma(below, square, broadcast(q[i]));
  return x * (above / below);
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

// With P(x) the normal distribution and p(x) its density. On vectors by minimax fits to odd
// functions: wrong by about 2e-7, as is 1 + erf in float32, at half the cost of an exponential.
struct Gelu {
  static F value(F x) {  // x P(x); P - 1/2 fitted up to 5.2, beyond which it is +-1/2
    constexpr float kP[] = {3.989417553e-01f, 6.027764827e-02f, 6.080707535e-03f,
                            4.118056095e-04f, 5.374422926e-06f, -1.616479572e-08f};
    constexpr float kQ[] = {1.f, 3.177514374e-01f, 4.321726039e-02f, 3.253429662e-03f,
                            1.383264607e-04f};
    const F more = clamp(odd_ratio(x, kP, kQ, 5.2f), -0.5, 0.5);
    return fma(x, more, x * broadcast(0.5f));
  }
  static F derivative(F x) {  // P(x) + x p(x); the same less 1/2 fitted up to 5.6
    constexpr float kP[] = {7.978850007e-01f,  -3.289956972e-02f, 1.418737788e-02f,
                            -5.563883860e-06f, 3.373599611e-05f,  1.276469419e-07f,
                            2.589366777e-10f};
    constexpr float kQ[] = {1.f,
                            2.921047211e-01f,
                            4.013762251e-02f,
                            3.382391995e-03f,
                            1.817324519e-04f,
                            7.700842616e-06f};
    return broadcast(0.5f) + odd_ratio(clamp(x, -5.6, 5.6), kP, kQ, 5.6f);
  }

  static double value(double x) {
    double density;
    return x * normal(x, density);
  }
  static double derivative(double x) {
    double density;
    const double less = normal(x, density);
    return fma(x, density, less);
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
