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

// The largest response, and the number of the element that gives it.
template <class V>
struct Winner {
  V response, element;
};

// Corners and edges, among which every element permutes the taps, are summed apart: the sums wait
// half as long. Terms are added in one order for all, so that equal ones give equal sums.
template <int e, class V>
inline __attribute__((always_inline)) V response_of(const V (&seen)[kTaps], const V (&taps)[kTaps],
                                                    V centre) {
  V corners = taps[kSource[e][0]] * seen[0], edges = centre;
#pragma GCC unroll 9
  for (int t = 1; t < kTaps; ++t) {
    V& sum = t % 2 ? edges : corners;
    if (t != kCentre) sum = fma(taps[kSource[e][t]], seen[t], sum);
  }
  return corners + edges;
}

// Among `count` elements from `first` on, by halves: the fewer comparisons wait for each other, the
// more pixels are at work at once. The first of equal responses wins, and NaN is larger than every
// number.
template <int first, int count, class V>
inline __attribute__((always_inline)) Winner<V> largest_among(const V (&seen)[kTaps],
                                                              const V (&taps)[kTaps], V centre) {
  if constexpr (count == 1) {
    return {response_of<first>(seen, taps, centre), constant<V>(first)};
  } else {
    const auto a = largest_among<first, count / 2>(seen, taps, centre);
    const auto b = largest_among<first + count / 2, count / 2>(seen, taps, centre);
    return {select_exceeding(b.response, a.response, b.response, a.response),
            select_exceeding(b.response, a.response, b.element, a.element)};
  }
}

template <int kElements, class V>
inline __attribute__((always_inline)) Winner<V> largest_response(const V (&seen)[kTaps],
                                                                 const V (&taps)[kTaps]) {
  return largest_among<0, kElements>(seen, taps, taps[kCentre] * seen[kCentre]);
}

// An element in three steps: each is taken in the lanes where it is positive.
template <class V>
struct Steps {
  V mirror, half_turn, quarter_turn;
};

template <class V>
inline __attribute__((always_inline)) Steps<V> steps_of(V element) {
  Steps<V> steps;
  steps.mirror = element - constant<V>(3.5);
  V turns = select_positive(steps.mirror, element - constant<V>(4), element);
  steps.half_turn = turns - constant<V>(1.5);
  turns = select_positive(steps.half_turn, turns - constant<V>(2), turns);
  steps.quarter_turn = turns - constant<V>(0.5);
  return steps;
}

// Where flag is positive, values moved as element e moves a kernel.
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

// A kernel in the orientation of an element.
template <int kElements, class V>
inline __attribute__((always_inline)) void turn(V element, V (&taps)[kTaps]) {
  const auto steps = steps_of(element);
  if (kElements == 8) move_where<kMirror>(steps.mirror, taps);
  move_where<kHalfTurn>(steps.half_turn, taps);
  move_where<kQuarterTurn>(steps.quarter_turn, taps);
}

// The inverse: what was seen, each value under the tap that met it.
template <int kElements, class V>
inline __attribute__((always_inline)) void turn_back(V element, V (&seen)[kTaps]) {
  const auto steps = steps_of(element);
  move_where<kQuarterBack>(steps.quarter_turn, seen);
  move_where<kHalfTurn>(steps.half_turn, seen);
  if (kElements == 8) move_where<kMirror>(steps.mirror, seen);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
