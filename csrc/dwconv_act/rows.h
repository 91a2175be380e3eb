// dwconv_act row by row: the bands of a job, forward and backward.
#pragma once

#include <type_traits>

#include "../common/activations.h"
#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "../common/stencil/walk_map.h"
#include "dwconv_act.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void dwconv_act_forward(const DwconvActParams& p, int64_t begin, int64_t end);
template <class T>
void dwconv_act_backward(const DwconvActParams& p, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 3, kTaps = kSide * kSide;

template <class T>
Cut<T> cut_of(const DwconvActParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, kSide, p.W + 2);
}

// Rows 0 to 8 of the partial sums belong to the taps, row 9 to the bias.
template <class T>
PartSums<T> sums_of(const DwconvActParams& p) {
  return PartSums<T>(cut_of<T>(p), kTaps + 1, p.workspace);
}

// Whether the forward is a walk: it converts a pixel of 16 bits for four rows of outputs at once,
// and reads whole rows of the map. Where pixels are a multiple of 2 KiB, their lines would push one
// another out of the first-level cache between two vectors of channels.
template <class T>
bool walks(const DwconvActParams& p) {
  return sizeof(T) == 2 && p.H >= rows_at_once(kSide) && p.C * sizeof(T) % 2048 != 0;
}

template <class T, class Act>
void forward_walks(const DwconvActParams& p, int64_t begin, int64_t end) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  constexpr int R = rows_at_once(kSide);
  const WalkedStencil<T> stencil{static_cast<const Scalar*>(p.weight), p.y,
                                 streams_vectors<T>(p.y, p.B, p.H)};
  for_each_walk<kSide, R>(p.H, begin, end, [&](auto, int64_t image, int64_t i, int64_t skipped) {
    const Fetch next = Fetch::rows<T>(p.x, image, i + R + kSide / 2, p.W, p.C);
    convolve_walk<T, kSide, R>(
        stencil, image, i, skipped, {next, Fetch::nothing(), 0},
        [&](int64_t, int64_t c, auto lanes) __attribute__((always_inline)) {
          return RowsOfMap<T, R + kSide - 1, decltype(lanes)>(p.x, p.H, image, i - kSide / 2, c,
                                                              lanes);
        },
        [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const V bias = p.bias ? load_lanes(static_cast<const Scalar*>(p.bias) + c, lanes) : V{};
          return [=](V sum) __attribute__((always_inline)) { return Act::value(sum + bias); };
        });
  });
}

// What a worker holds while it runs jobs.
template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Window3 = Window<Scalar, kSide>;

 public:
  explicit Worker(const DwconvActParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        x_(kSide, p.H, p.W, 1, width_),
        taps_(width_),
        bias_(width_) {}

  template <class Act>
  void forward(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_.y, p_.B, p_.H);
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        fill_x(job, image, i + 1);
        T* y = p_.y.row<T>(image, i, job.channel);
        const Ahead<T> next(p_.x, p_.H, image, i + 2, job.channel);
        const Scalar* bias = bias_.data();
        convolve_row_as<T, kSide, true>(
            Window3(x_, i, width_), p_.W, taps_.data(), job.channels,
            [=, C = p_.C](int64_t j, int64_t c, auto lanes, V t) __attribute__((always_inline)) {
              next.fetch(j, c);
              stream_lanes(y + j * C + c, Act::value(t + load(bias + c)), lanes, streams);
            });
      }
    });
    stream_fence();
  }

  template <class Act>
  void backward(int64_t begin, int64_t end) {
    RowRing<Scalar> dt(kSide, p_.H, p_.W, 1, width_);
    Taps<Scalar, kSide> turned(width_);
    const PartSums<T> sums = sums_of<T>(p_);
    const bool needs_sums = p_.grad_weight || p_.grad_bias;
    const bool streams = p_.grad_x.data && streams_map<T>(p_.grad_x, p_.B, p_.H);
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      if (image == job.image_begin) {
        turned.pack_parameter(p_.weight, p_.C, job.channel, job.channels, true);
        if (needs_sums) sums.clear(job, width_);
      }
      const int64_t halo = p_.grad_x.data ? 1 : 0;
      dt.restart(job.row_begin - halo);
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        dt.fill_to(i + halo, [&](int64_t row, Scalar* to) {
          fill_dt<Act>(job, image, row, to);
          if (needs_sums && row >= job.row_begin && row < job.row_end)
            add_sums(sums, job, image, row, to);
        });
        if (!p_.grad_x.data) continue;
        constexpr bool kFetchesX = std::is_same_v<Act, NoActivation>;  // else fill_dt does
        store_dx<kFetchesX>(Window3(dt, i, width_), turned, job, image, i, streams);
      }
    });
    stream_fence();
  }

 private:
  // body(job, image) with the job's taps and bias at hand and no row of x.
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      taps_.pack_parameter(p_.weight, p_.C, job.channel, job.channels);
      bias_.pack_parameter(p_.bias, p_.C, job.channel, job.channels);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        x_.restart(job.row_begin - 2);
        body(job, image);
      }
    }
  }

  void fill_x(const Job& job, int64_t image, int64_t last) {
    x_.fill_to(last, [&](int64_t i, Scalar* to) {
      load_row(p_.x.row<T>(image, i, job.channel), p_.x.stride[2], p_.W, job.channels, to, width_,
               Identity{});
    });
  }

  template <class Act>
  void fill_dt(const Job& job, int64_t image, int64_t row, Scalar* to) {
    const T* grad = p_.grad.row<T>(image, row, job.channel);
    if constexpr (std::is_same_v<Act, NoActivation>)
      return load_row(grad, p_.grad.stride[2], p_.W, job.channels, to, width_, Identity{});
    else
      fill_slopes<Act>(grad, job, image, row, to);
  }

  // The same, where the activation's slope depends on the sum of taps times what they see.
  template <class Act>
  void fill_slopes(const T* grad, const Job& job, int64_t image, int64_t row, Scalar* to) {
    fill_x(job, image, row + 1);
    const Ahead<T> next(p_.x, p_.H, image, row + 2, job.channel);
    const Scalar* bias = bias_.data();
    convolve_row_as<T, kSide, true>(
        Window3(x_, row, width_), p_.W, taps_.data(), job.channels,
        [=, step = p_.grad.stride[2], width = width_](int64_t j, int64_t c, auto lanes, V t)
            __attribute__((always_inline)) {
              next.fetch(j, c);
              const V dy = load_lanes(grad + j * step + c, lanes);
              store(to + j * width + c, dy * Act::derivative(t + load(bias + c)));
            });
  }

  // The same for all activations, hence compiled once.
  template <bool kFetchesX>
  void store_dx(const Window3& dt, const Taps<Scalar, kSide>& turned, const Job& job, int64_t image,
                int64_t i, bool streams) const {
    T* dx = p_.grad_x.row<T>(image, i, job.channel);
    const Ahead<T> next(p_.grad, p_.H, image, i + 2, job.channel);
    const Ahead<T> next_x(p_.x, p_.H, image, i + 2, job.channel);
    convolve_row_as<T, kSide, true>(dt, p_.W, turned.data(), job.channels,
                                    [=, C = p_.C](int64_t j, int64_t c, auto lanes, V sum)
                                        __attribute__((always_inline)) {
                                          next.fetch(j, c);
                                          if (kFetchesX) next_x.fetch(j, c);
                                          stream_lanes(dx + j * C + c, sum, lanes, streams);
                                        });
  }

  void add_sums(const PartSums<T>& sums, const Job& job, int64_t image, int64_t row,
                const Scalar* dt) {
    if (p_.grad_weight) {
      fill_x(job, image, row + 1);
      correlate_row_as<T, kSide, true>(Window3(x_, row, width_), p_.W, dt, sums.at(job), sums.row);
    }
    if (p_.grad_bias) add_pixels<T>(dt, p_.W, width_, sums.at(job) + kTaps * sums.row);
  }

  const DwconvActParams& p_;
  const Cut<T> cut_;
  const int64_t width_;
  RowRing<Scalar> x_;
  Taps<Scalar, kSide> taps_;
  PerChannel<Scalar> bias_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
