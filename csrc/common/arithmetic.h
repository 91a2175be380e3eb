// One kernel for every data type: what it computes in, and loops over vectors of channels.
//
//   Arithmetic<T>::Scalar   what one element of T is computed in: float, or double for double
//   Arithmetic<T>::Vector   kCount of them; load, store, fma, ... of simd.h take either kind
//   for_each_vector(C, body)  body(c, lanes) for all C channels; load_lanes and store_lanes touch
//                             a whole vector, or what there is of the last one
//   for_dtype(dtype, call)  what call(T{}) returns, with the type of the data
#pragma once

#include "simd.h"
#include "types.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
struct Arithmetic {
  using Scalar = float;
  using Vector = F;
  static constexpr int kCount = kLanes;
};

// float64 is there for checking gradients: plain code will do.
template <>
struct Arithmetic<double> {
  using Scalar = double;
  using Vector = double;
  static constexpr int kCount = 1;
};

inline double exp2(double x) { return __builtin_exp2(x); }
inline double broadcast(double x) { return x; }
inline double fma(double a, double b, double c) { return a * b + c; }
inline double max(double a, double b) { return a > b ? a : b; }
inline double min(double a, double b) { return a < b ? a : b; }
inline double load(const double* p) { return *p; }
inline double load_first(const double* p, int) { return *p; }
inline void store(double* p, double v) { *p = v; }
inline void store_first(double* p, double v, int) { *p = v; }
inline void stream_one(double* p, double v) { *p = v; }
inline void transpose(double (&)[1]) {}
inline double sum(double v) { return v; }

// Which lanes of a vector are in use.
struct All {};
struct First {
  int count;
};

template <class T>
typename Arithmetic<T>::Vector load_lanes(const T* from, All) {
  return load(from);
}
template <class T>
typename Arithmetic<T>::Vector load_lanes(const T* from, First lanes) {
  return load_first(from, lanes.count);
}

template <class T>
void store_lanes(T* to, typename Arithmetic<T>::Vector v, All) {
  store(to, v);
}
template <class T>
void store_lanes(T* to, typename Arithmetic<T>::Vector v, First lanes) {
  store_first(to, v, lanes.count);
}

// The same past the caches, where whole vectors are aligned and `streams` says so.
template <class T>
void stream_lanes(T* to, typename Arithmetic<T>::Vector v, All, bool streams) {
  streams ? stream_one(to, v) : store(to, v);
}
template <class T>
void stream_lanes(T* to, typename Arithmetic<T>::Vector v, First lanes, bool) {
  store_first(to, v, lanes.count);
}

template <class T, class Body>
inline __attribute__((always_inline)) void for_each_vector(int64_t channels, const Body& body) {
  constexpr int kCount = Arithmetic<T>::kCount;
  const int64_t whole = channels / kCount * kCount;
  for (int64_t c = 0; c < whole; c += kCount) body(c, All{});
  if (whole < channels) body(whole, First{static_cast<int>(channels - whole)});
}

template <class Call>
auto for_dtype(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::f32:
      return call(float{});
    case DType::f64:
      return call(double{});
    case DType::bf16:
      return call(bf16{});
    case DType::f16:
      return call(f16{});
  }
  __builtin_unreachable();
}

// Channels in whole vectors: rows of sums are that long, so that idle lanes have a place too.
template <class T>
int64_t whole_vectors(int64_t channels) {
  constexpr int64_t kCount = Arithmetic<T>::kCount;
  return (channels + kCount - 1) / kCount * kCount;
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
