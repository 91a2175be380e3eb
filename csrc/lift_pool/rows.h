// lift_pool row by row: the bands of a job, forward and backward.
#pragma once

#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "lift_pool.h"
#include "orientations.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void lift_pool_forward(const LiftPoolParams& p, int64_t begin, int64_t end);
template <class T>
void lift_pool_backward(const LiftPoolParams& p, int64_t begin, int64_t end);

namespace {

constexpr int64_t kSide = 3;
constexpr int64_t kTilePixels = 16;  // walked with the taps in registers

template <class T>
Cut<T> cut_of(const LiftPoolParams& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, kSide, p.W + 2);
}

template <class T>
PartSums<T> sums_of(const LiftPoolParams& p) {
  return PartSums<T>(cut_of<T>(p), kTaps, p.workspace);
}

// What a worker holds while it runs jobs; kElements: of the group, 4 or 8.
template <class T, int kElements>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 public:
  explicit Worker(const LiftPoolParams& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        pitch_((p.W + 2) * width_),
        x_(kSide, p.H, p.W, 1, width_),
        outside_(static_cast<size_t>(pitch_)),
        taps_(width_),
        winners_(static_cast<size_t>(p.W * Arithmetic<T>::kCount)) {
    zero(&outside_[0], pitch_);
  }

  void forward(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_.y, p_.B, p_.H);
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      for (int64_t i = job.row_begin; i < job.row_end; ++i) {
        fill_x(job, image, i + 1);
        forward_row(job, image, i, streams);
      }
    });
    stream_fence();
  }

  void backward(int64_t begin, int64_t end) {
    const bool streams = p_.grad_x.data && streams_map<T>(p_.grad_x, p_.B, p_.H);
    const int64_t halo = p_.grad_x.data ? 1 : 0;
    AlignedBuffer<Scalar> dy(static_cast<size_t>(p_.W * width_));
    GradRows dx(*this);
    const PartSums<T> sums = sums_of<T>(p_);
    zero(&dy[0], p_.W * width_);
    for_each_image(begin, end, [&](const Job& job, int64_t image) {
      if (p_.grad_weight && image == job.image_begin) sums.clear(job, width_);
      dx.restart();
      const int64_t first = larger(0, job.row_begin - halo), last = job.row_end + halo;
      for (int64_t i = first; i < smaller(p_.H, last); ++i) {
        fill_x(job, image, i + 1);
        load_row(p_.grad.row<T>(image, i, job.channel), p_.grad.stride[2], p_.W, job.channels,
                 &dy[0], width_, Identity{});
        const bool is_own = i >= job.row_begin && i < job.row_end;
        backward_row(job, image, i, dy, dx, is_own && p_.grad_weight ? sums.at(job) : nullptr,
                     sums.row);
        if (halo && i > job.row_begin) dx.store(job, image, i - 1, streams);
      }
      if (halo && job.row_end == p_.H) dx.store(job, image, p_.H - 1, streams);
    });
    stream_fence();
  }

 private:
  // Rows of dx to which outputs still add: those around the row of outputs at hand.
  class GradRows {
   public:
    explicit GradRows(const Worker& worker)
        : worker_(worker), data_(static_cast<size_t>(kSide * worker.pitch_)) {}

    void restart() { zero(&data_[0], kSide * worker_.pitch_); }

    // The pixel left of the first one.
    Scalar* row(int64_t i) const { return data_ + (i + kSide) % kSide * worker_.pitch_; }

    void store(const Job& job, int64_t image, int64_t i, bool streams) const {
      const OutputMap& map = worker_.p_.grad_x;
      T* to = map.row<T>(image, i, job.channel);
      const Scalar* from = row(i) + worker_.width_;
      for (int64_t j = 0; j < map.W; ++j, to += map.C, from += worker_.width_)
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          stream_lanes(to + c, load(from + c), lanes, streams);
        });
    }

   private:
    const Worker& worker_;
    AlignedBuffer<Scalar> data_;
  };

  // body(job, image) with the job's taps at hand and no row of x.
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      taps_.pack_parameter(p_.weight, p_.C, job.channel, job.channels);
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

  // The taps of channels from c on.
  __attribute__((always_inline)) void load_taps(int64_t c, V (&taps)[kTaps]) const {
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) taps[t] = load(taps_.data() + t * width_ + c);
  }

  // body(j, seen) for pixels `first` to `last` of row i: what nine taps see, channels from c on.
  template <class Body>
  __attribute__((always_inline)) void slide(int64_t i, int64_t first, int64_t last, int64_t c,
                                            const Body& body) const {
    const Window<Scalar, kSide> window(x_, i, width_);
    const int64_t width = width_;
    const Scalar* rows[kSide];
    V seen[kTaps];
#pragma GCC unroll 3
    for (int u = 0; u < kSide; ++u) {
      rows[u] = (window.rows[u] ? window.rows[u] : &outside_[0]) + c;
      seen[kSide * u + 1] = load(rows[u] + first * width);
      seen[kSide * u + 2] = load(rows[u] + (first + 1) * width);
    }
    for (int64_t j = first; j < last; ++j) {
#pragma GCC unroll 3
      for (int u = 0; u < kSide; ++u) {
        seen[kSide * u] = seen[kSide * u + 1];
        seen[kSide * u + 1] = seen[kSide * u + 2];
        seen[kSide * u + 2] = load(rows[u] + (j + 2) * width);
      }
      body(j, seen);
    }
  }

  void forward_row(const Job& job, int64_t image, int64_t i, bool streams) const {
    T* y = p_.y.row<T>(image, i, job.channel);
    const Ahead<T> next(p_.x, p_.H, image, i + 2, job.channel);
    for (int64_t first = 0; first < p_.W; first += kTilePixels)
      for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        V taps[kTaps];
        load_taps(c, taps);
        slide(i, first, smaller(p_.W, first + kTilePixels), c,
              [=, &taps, C = p_.C](int64_t j, const V(&seen)[kTaps])
                  __attribute__((always_inline)) {
                    next.fetch(j, c);
                    const V response = largest_response<kElements>(seen, taps).response;
                    stream_lanes(y + j * C + c, response, lanes, streams);
                  });
      });
  }

  // Row i of outputs: what it gives to the sums, unless null, and to three rows of dx. Winners are
  // kept between the two, which together need more registers than there are.
  void backward_row(const Job& job, int64_t image, int64_t i, const Scalar* dy, const GradRows& dx,
                    Scalar* sums, int64_t sum_row) const {
    constexpr int kCount = Arithmetic<T>::kCount;
    const int64_t width = width_;
    const Ahead<T> next(p_.grad, p_.H, image, i + 1, job.channel);
    const Ahead<T> next_x(p_.x, p_.H, image, i + 2, job.channel);
    for (int64_t c = 0; c < width; c += kCount) {
      V taps[kTaps], sum[kTaps] = {};
      load_taps(c, taps);
      slide(i, 0, p_.W, c,
            [=, &taps, &sum, winners = &winners_[0]](int64_t j, const V(&seen)[kTaps])
                __attribute__((always_inline)) {
                  next.fetch(j, c);
                  next_x.fetch(j, c);
                  const V winner = largest_response<kElements>(seen, taps).element;
                  if (sums) add_upright(load(dy + j * width + c), winner, seen, sum);
                  store(winners + j * kCount, winner);
                });
      if (p_.grad_x.data) add_to_pixels(dy + c, taps, dx, i, c);
      if (!sums) continue;
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) {
        Scalar* to = sums + t * sum_row + c;
        store(to, load(to) + sum[t]);
      }
    }
  }

  // The gradient of the taps.
  static __attribute__((always_inline)) void add_upright(V g, V winner, const V (&seen)[kTaps],
                                                         V (&sum)[kTaps]) {
    V upright[kTaps];
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) upright[t] = seen[t];
    turn_back<kElements>(winner, upright);
#pragma GCC unroll 9
    for (int t = 0; t < kTaps; ++t) sum[t] = fma(g, upright[t], sum[t]);
  }

  // What row i of outputs gives to the pixels that it saw, in three columns that stay open while an
  // output may still add to them.
  void add_to_pixels(const Scalar* dy, const V (&taps)[kTaps], const GradRows& dx, int64_t i,
                     int64_t c) const {
    constexpr int kCount = Arithmetic<T>::kCount;
    Scalar* const grads[kSide] = {dx.row(i - 1) + c, dx.row(i) + c, dx.row(i + 1) + c};
    V open[kTaps] = {};
    for (int64_t j = 0; j < p_.W; ++j) {
      V kernel[kTaps];
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) kernel[t] = taps[t];
      turn<kElements>(load(winners_ + j * kCount), kernel);
      const V g = load(dy + j * width_);
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) open[t] = fma(g, kernel[t], open[t]);
      close_column(grads, j * width_, open);
    }
    close_column(grads, p_.W * width_, open);
  }

  // Adds the left column, which no further output of the row sees, to three rows of dx. To the
  // lowest of them nothing has been added before.
  static __attribute__((always_inline)) void close_column(Scalar* const (&grads)[kSide], int64_t at,
                                                          V (&open)[kTaps]) {
#pragma GCC unroll 3
    for (int u = 0; u < kSide; ++u) {
      V* row = open + kSide * u;
      Scalar* to = grads[u] + at;
      store(to, u == kSide - 1 ? row[0] : load(to) + row[0]);
      row[0] = row[1];
      row[1] = row[2];
      row[2] = V{};
    }
  }

  const LiftPoolParams& p_;
  const Cut<T> cut_;
  const int64_t width_, pitch_;
  RowRing<Scalar> x_;
  AlignedBuffer<Scalar> outside_;  // a row of zeros
  Taps<Scalar, kSide> taps_;
  AlignedBuffer<Scalar> winners_;  // of a row of outputs, for one vector of channels
};

// run(worker) with a worker for the group.
template <class T, class Run>
void with_worker(const LiftPoolParams& p, const Run& run) {
  if (p.mirrors)
    run(Worker<T, 8>(p));
  else
    run(Worker<T, 4>(p));
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
