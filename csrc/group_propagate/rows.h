// group_propagate on the CPU, some rows of a map at a time. Queries of both branches come out of
// the stencils into panels of pixels in float (double), which attend and are forgotten; in the
// backward their gradients go to rings of rows that the turned stencils read.
#pragma once

#include "../common/attention/cpu_few_keys.h"
#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "group_propagate.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void group_propagate_forward(const GroupPropagateParams& p, int64_t begin, int64_t end);
template <class T>
void group_propagate_backward(const GroupPropagateParams& p, int64_t begin, int64_t end);

namespace {

using Params = GroupPropagateParams;

constexpr int64_t kHalo = 2;

// Images and bands as for one channel; then all channels together, as heads must not be cut.
template <class T>
Cut<T> cut_of(const Params& p) {
  Cut<T> cut(p.B, p.H, p.W, 1, 1, 1);
  cut.C = p.C;
  cut.width = whole_vectors<T>(p.C);
  return cut;
}

// Rows that are worked on together: about a panel of pixels.
template <class T>
int64_t rows_at_once(const Params& p) {
  return smaller(p.H, larger(1, FewKeys<T>::kPanel / p.W));
}

// The terms of the partial sums over pixels: taps and bias of one branch, then of the other.
constexpr int64_t kTerms = 9 + 1 + 25 + 1;
constexpr int64_t first_term(int branch) { return branch ? 10 : 0; }
constexpr int64_t taps_of(int branch) { return branch ? 25 : 9; }

// Where partial sums lie: those of the parameters by part of the cut, those of tokens by image,
// band and branch.
template <class T>
struct Sums {
  using Scalar = typename Arithmetic<T>::Scalar;
  PartSums<T> parameters;
  int64_t bands, tokens;
  Scalar* token_data;

  Sums(const Params& p, const Cut<T>& cut)
      : parameters(needs_parameters(p) ? cut.parts() : 0, kTerms, cut.row_of_sums(), p.workspace),
        bands(cut.bands),
        tokens(p.branch[0].grad_kv ? FewKeys<T>::sums(p.G, p.h, p.d) : 0),
        token_data(static_cast<Scalar*>(p.workspace) + parameters.bytes() / sizeof(Scalar)) {}

  static bool needs_parameters(const Params& p) { return p.branch[0].grad_weight; }
  int64_t bytes(int64_t images) const {
    return parameters.bytes() + images * bands * 2 * tokens * static_cast<int64_t>(sizeof(Scalar));
  }
  Scalar* of_tokens(int64_t image, int64_t band, int branch) const {
    return token_data + ((image * bands + band) * 2 + branch) * tokens;
  }
};

// What a worker holds of one branch.
template <class T, int K>
struct Branch {
  using Scalar = typename Arithmetic<T>::Scalar;
  const PropagateBranch& p;
  FewKeys<T> attention;
  Taps<Scalar, K> taps;
  AlignedBuffer<Scalar> bias;
  AlignedBuffer<Scalar> q;  // [pixel][channel] of some rows

  Branch(const Params& all, const PropagateBranch& p, int64_t width, int64_t pixels)
      : p(p),
        attention(all.G, all.h, all.d, all.scale),
        taps(width),
        bias(static_cast<size_t>(width)),
        q(static_cast<size_t>(pixels * width + FewKeys<T>::kSlack)) {
    const auto* weight = static_cast<const Scalar*>(p.weight);
    taps.pack(all.C, false, [&](int tap, int64_t c) { return weight[tap * all.C + c]; });
    for (int64_t c = 0; c < width; ++c)
      bias[c] = c < all.C ? static_cast<const Scalar*>(p.bias)[c] : 0;
  }

  void begin(int64_t image) {
    const T* kv = static_cast<const T*>(p.kv) + image * p.kv_stride[0];
    attention.begin({kv, p.kv_stride[1], p.kv_stride[2], p.kv_stride[3]});
  }
};

// Rows of x and the queries that they give, for both directions.
template <class T>
class Rows {
 protected:
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int64_t kPanel = FewKeys<T>::kPanel;

  explicit Rows(const Params& p)
      : p_(p),
        cut_(cut_of<T>(p)),
        width_(cut_.width),
        most_(rows_at_once<T>(p)),
        x_(most_ + 2 * kHalo, p.H, p.W, kHalo, width_),
        three_(p, p.branch[0], width_, most_ * p.W),
        five_(p, p.branch[1], width_, most_ * p.W) {}

  // body(job, image), with the image's tokens at hand and no row of x.
  template <class Body>
  void for_each_image(int64_t begin, int64_t end, const Body& body) {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      for (int64_t image = job.image_begin; image < job.image_end; ++image) {
        three_.begin(image);
        five_.begin(image);
        body(job, image);
      }
    }
    stream_fence();
  }

  // Queries of rows i, i + 1, ... of an image.
  void query_rows(int64_t image, int64_t i, int64_t rows) {
    x_.fill_to(i + rows - 1 + kHalo, [&](int64_t row, Scalar* to) {
      load_row(p_.x.row<T>(image, row, 0), p_.x.stride[2], p_.W, p_.C, to, width_, Identity{});
    });
    convolve_rows(three_, image, i, rows);
    convolve_rows(five_, image, i, rows);
  }

  // body(offset of the first pixel, pixels) for the panels of some rows.
  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t pixels = rows * p_.W;
    for (int64_t first = 0; first < pixels; first += kPanel)
      body(first * width_, smaller(kPanel, pixels - first));
  }

  const Params& p_;
  const Cut<T> cut_;
  const int64_t width_, most_;
  RowRing<Scalar> x_;
  Branch<T, 3> three_;
  Branch<T, 5> five_;

 private:
  template <int K>
  void convolve_rows(Branch<T, K>& branch, int64_t image, int64_t i, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      Scalar* to = branch.q + row * p_.W * width_;
      const Scalar* bias = branch.bias;
      const Ahead<T> next(p_.x, p_.H, image, i + row + kHalo + 1, 0);
      convolve_row_as<T, K, true>(
          Window<Scalar, K>(x_, i + row, width_), p_.W, branch.taps.data(), p_.C,
          [=, width = width_](int64_t j, int64_t c, auto, V t) __attribute__((always_inline)) {
            if (K == 3) next.fetch(j, c);
            store(to + j * width + c, t + load(bias + c));
          });
    }
  }
};

template <class T>
class Forward : Rows<T> {
  using Base = Rows<T>;
  using Base::p_, Base::width_, Base::most_, Base::three_, Base::five_;
  using typename Base::Scalar;

 public:
  explicit Forward(const Params& p)
      : Base(p), y_(static_cast<size_t>(most_ * p.W * width_ + FewKeys<T>::kSlack)) {}

  void operator()(int64_t begin, int64_t end) {
    const bool streams = streams_map<T>(p_.y, p_.B, p_.H);
    this->for_each_image(begin, end, [&](const Job& job, int64_t image) {
      this->x_.restart(job.row_begin - kHalo);
      for (int64_t i = job.row_begin; i < job.row_end; i += most_) {
        const int64_t rows = smaller(most_, job.row_end - i);
        this->query_rows(image, i, rows);
        zero(&y_[0], rows * p_.W * width_);
        this->for_panels(rows, [&](int64_t at, int64_t count) {
          three_.attention.add_attention(three_.q + at, y_ + at, width_, count);
          five_.attention.add_attention(five_.q + at, y_ + at, width_, count);
        });
        store_pixels(p_.y.template row<T>(image, i, 0), rows * p_.W, streams);
      }
    });
  }

 private:
  void store_pixels(T* to, int64_t pixels, bool streams) const {
    for (int64_t j = 0; j < pixels; ++j)
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        stream_lanes(to + j * p_.C + c, load(y_ + j * width_ + c), lanes, streams);
      });
  }

  AlignedBuffer<Scalar> y_;  // [pixel][channel] of some rows
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
