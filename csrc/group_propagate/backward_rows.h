// Backward of group_propagate: gradients of queries row by row into rings, one for each branch,
// which the turned stencils read two rows behind. A band computes the rows of its halo again, and
// sums over its own rows only.
#pragma once

#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
class Backward : Rows<T> {
  using Base = Rows<T>;
  using Base::p_, Base::cut_, Base::width_, Base::most_, Base::x_, Base::three_, Base::five_;
  using typename Base::Scalar, typename Base::V;

 public:
  explicit Backward(const Params& p)
      : Base(p),
        sums_(p, cut_),
        needs_query_(p.grad_x.data || Sums<T>::needs_parameters(p)),
        grad_(static_cast<size_t>(most_ * p.W * width_ + FewKeys<T>::kSlack)),
        grad_q_(static_cast<size_t>(most_ * p.W * width_)),
        grad_x_(static_cast<size_t>(p.W * width_)),
        grad_three_(most_ + 2 * kHalo, p.H, p.W, kHalo, width_),
        grad_five_(most_ + 2 * kHalo, p.H, p.W, kHalo, width_),
        turned_three_(width_),
        turned_five_(width_) {
    pack_turned(turned_three_, p.branch[0]);
    pack_turned(turned_five_, p.branch[1]);
    zero(&grad_q_[0], most_ * p.W * width_);  // lanes behind the last channel stay so
  }

  void operator()(int64_t begin, int64_t end) {
    const int64_t halo = p_.grad_x.data ? kHalo : 0;
    const bool streams = halo && streams_map<T>(p_.grad_x, p_.B, p_.H);
    this->for_each_image(begin, end, [&](const Job& job, int64_t image) {
      begin_sums(job, image);
      const int64_t last = smaller(p_.H, job.row_end + halo);
      int64_t next = larger(0, job.row_begin - halo), stored = job.row_begin;
      x_.restart(next - kHalo);
      grad_three_.restart(next);
      grad_five_.restart(next);
      while (next < last) {
        next += query_gradients(job, image, next, last);
        const int64_t ready = next == p_.H ? job.row_end : smaller(job.row_end, next - kHalo);
        for (; halo && stored < ready; ++stored) store_row(image, stored, streams);
      }
    });
  }

 private:
  template <int K>
  void pack_turned(Taps<Scalar, K>& taps, const PropagateBranch& branch) const {
    const auto* weight = static_cast<const Scalar*>(branch.weight);
    taps.pack(p_.C, true, [&](int tap, int64_t c) { return weight[tap * p_.C + c]; });
  }

  void begin_sums(const Job& job, int64_t image) {
    const int64_t band = job.part % cut_.bands;
    for (int branch = 0; branch < 2; ++branch) {
      token_sums_[branch] = sums_.of_tokens(image, band, branch);
      zero(token_sums_[branch], sums_.tokens);
    }
    if (Sums<T>::needs_parameters(p_) && image == job.image_begin) sums_.parameters.clear(job.part);
  }

  // Of some rows from `first` on, all in the band or all in its halo; how many.
  int64_t query_gradients(const Job& job, int64_t image, int64_t first, int64_t last) {
    const bool is_own = first >= job.row_begin && first < job.row_end;
    const int64_t end = first < job.row_begin ? job.row_begin : is_own ? job.row_end : last;
    const int64_t rows = smaller(most_, end - first);
    this->query_rows(image, first, rows);
    for (int64_t row = 0; row < rows; ++row)
      load_row(p_.grad.template row<T>(image, first + row, 0), p_.grad.stride[2], p_.W, p_.C,
               grad_ + row * p_.W * width_, width_, Identity{});
    pass_branch(three_, grad_three_, 0, job, first, rows, is_own);
    pass_branch(five_, grad_five_, 1, job, first, rows, is_own);
    return rows;
  }

  template <int K>
  void pass_branch(Branch<T, K>& branch, RowRing<Scalar>& ring, int index, const Job& job,
                   int64_t first, int64_t rows, bool is_own) {
    Scalar* token_sums = is_own && sums_.tokens ? token_sums_[index] : nullptr;
    this->for_panels(rows, [&](int64_t at, int64_t count) {
      branch.attention.backward(branch.q + at, grad_ + at, needs_query_ ? grad_q_ + at : nullptr,
                                token_sums, width_, count);
    });
    if (!needs_query_) return;
    const int64_t size = p_.W * width_;
    ring.fill_to(first + rows - 1, [&](int64_t row, Scalar* to) {
      const Scalar* from = grad_q_ + (row - first) * size;
      for (int64_t i = 0; i < size; i += Arithmetic<T>::kCount) store(to + i, load(from + i));
      if (is_own && Sums<T>::needs_parameters(p_)) add_sums<K>(index, job, row, to);
    });
  }

  template <int K>
  void add_sums(int index, const Job& job, int64_t row, const Scalar* grad) {
    const PartSums<T>& sums = sums_.parameters;
    Scalar* to = sums.at(job) + first_term(index) * sums.row;
    correlate_row_as<T, K, true>(Window<Scalar, K>(x_, row, width_), p_.W, grad, to, sums.row);
    add_pixels<T>(grad, p_.W, width_, to + K * K * sums.row);
  }

  void store_row(int64_t image, int64_t i, bool streams) {
    Scalar* sum = grad_x_;
    T* to = p_.grad_x.template row<T>(image, i, 0);
    convolve_row_as<T, 3, true>(
        Window<Scalar, 3>(grad_three_, i, width_), p_.W, turned_three_.data(), p_.C,
        [=, width = width_](int64_t j, int64_t c, auto, V x)
            __attribute__((always_inline)) { store(sum + j * width + c, x); });
    convolve_row_as<T, 5, true>(Window<Scalar, 5>(grad_five_, i, width_), p_.W, turned_five_.data(),
                                p_.C,
                                [=, width = width_, C = p_.C](int64_t j, int64_t c, auto lanes, V x)
                                    __attribute__((always_inline)) {
                                      const V total = x + load(sum + j * width + c);
                                      stream_lanes(to + j * C + c, total, lanes, streams);
                                    });
  }

  const Sums<T> sums_;
  const bool needs_query_;
  Scalar* token_sums_[2] = {};
  AlignedBuffer<Scalar> grad_, grad_q_;  // [pixel][channel] of some rows
  AlignedBuffer<Scalar> grad_x_;         // of a row
  RowRing<Scalar> grad_three_, grad_five_;
  Taps<Scalar, 3> turned_three_;
  Taps<Scalar, 5> turned_five_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
