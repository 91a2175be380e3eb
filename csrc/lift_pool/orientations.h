// Nine pixels under a 3x3 kernel, and the orientations of the kernel there, on vectors of channels:
// every lane has a winner of its own.
#pragma once

#include "../common/activations.h"
#include "../common/comparisons.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int kTaps = 9, kCentre = 4;

// act_e(w)[t] = w[kSource[e][t]]: four turns counter-clockwise, then those of the mirrored kernel.
constexpr int kSource[8][kTaps] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8}, {2, 5, 8, 1, 4, 7, 0, 3, 6}, {8, 7, 6, 5, 4, 3, 2, 1, 0},
    {6, 3, 0, 7, 4, 1, 8, 5, 2}, {2, 1, 0, 5, 4, 3, 8, 7, 6}, {0, 3, 6, 1, 4, 7, 2, 5, 8},
    {6, 7, 8, 3, 4, 5, 0, 1, 2}, {8, 5, 2, 7, 4, 1, 6, 3, 0},
};
constexpr int kQuarterTurn = 1, kHalfTurn = 2, kQuarterBack = 3, kMirror = 4;  // elements

// The largest response and whose it is: element 4 mirror + 2 half + quarter, each of them 0 or 1.
template <class V>
struct Winner {
  V response, quarter, half, mirror;
};

// The first of equal responses wins, and NaN is larger than every number. The product under the
// centre is the same for all; the others are added in one order, so that equal terms give equal
// sums.
template <int kElements, class V>
inline __attribute__((always_inline)) Winner<V> largest_response(const V (&seen)[kTaps],
                                                                 const V (&taps)[kTaps]) {
  const V zero{}, one = constant<V>(1), centre = taps[kCentre] * seen[kCentre];
  Winner<V> winner{zero, zero, zero, zero};
#pragma GCC unroll 8
  for (int e = 0; e < kElements; ++e) {
    V response = centre;
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t)
      if (t != kCentre) response = fma(taps[kSource[e][t]], seen[t], response);
    if (e == 0) {
      winner.response = response;
      continue;
    }
    const V before = winner.response;
    const auto replace = [&](V& of, V by) __attribute__((always_inline)) {
      of = select_exceeding(response, before, by, of);
    };
    replace(winner.response, response);
    replace(winner.quarter, e & 1 ? one : zero);
    replace(winner.half, e & 2 ? one : zero);
    if (kElements == 8) replace(winner.mirror, e & 4 ? one : zero);
  }
  return winner;
}

// Where flag is 1, values moved as element e moves a kernel.
template <int e, class V>
inline __attribute__((always_inline)) void move_where(V flag, V (&values)[kTaps]) {
  V moved[kTaps];
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) {
    const int from = kSource[e][t];
    moved[t] = from == t ? values[t] : select_positive(flag, values[from], values[t]);
  }
#pragma GCC unroll 9
  for (int t = 0; t < kTaps; ++t) values[t] = moved[t];
}

// A kernel in the winner's orientation.
template <int kElements, class V>
inline __attribute__((always_inline)) void turn(const Winner<V>& winner, V (&taps)[kTaps]) {
  if (kElements == 8) move_where<kMirror>(winner.mirror, taps);
  move_where<kHalfTurn>(winner.half, taps);
  move_where<kQuarterTurn>(winner.quarter, taps);
}

// The inverse: what the winner saw, each value under the tap that met it.
template <int kElements, class V>
inline __attribute__((always_inline)) void turn_back(const Winner<V>& winner, V (&seen)[kTaps]) {
  move_where<kQuarterBack>(winner.quarter, seen);
  move_where<kHalfTurn>(winner.half, seen);
  if (kElements == 8) move_where<kMirror>(winner.mirror, seen);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
