// Forward and backward in float64, in plain C++: what gradcheck and precise comparisons run on. The
// innermost loops run over contiguous memory and reduce nothing, so that the compiler vectorises.
// The interfaces are those of ForwardPanels and BackwardTiles, all keys being one tile; nothing is
// fetched ahead.
#pragma once

#include "cpu_backward.h"
#include "cpu_forward.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Keys and values of one head, and the scores of one query at a time.
class DoubleAttention {
 protected:
  explicit DoubleAttention(const AttentionSizes& most)
      : d_(most.d),
        dv_(most.dv),
        scale_(most.scale),
        k_(most.keys * most.d),
        kt_(most.keys * most.d),
        v_(most.keys * most.dv),
        s_(most.keys) {}

  void gather(const RowAddresses<double>& k, const RowAddresses<double>& v) {
    keys_ = k.count();
    for (int64_t m = 0; m < keys_; ++m)
      for (int c = 0; c < d_; ++c) k_[m * d_ + c] = kt_[c * keys_ + m] = k[m][c];
    for (int64_t m = 0; m < keys_; ++m)
      for (int c = 0; c < dv_; ++c) v_[m * dv_ + c] = v[m][c];
  }

  void scores(const double* q) {
    for (int64_t m = 0; m < keys_; ++m) s_[m] = 0;
    for (int c = 0; c < d_; ++c)
      for (int64_t m = 0; m < keys_; ++m) s_[m] += scale_ * q[c] * kt_[c * keys_ + m];
  }

  const int d_, dv_;
  const double scale_;
  int64_t keys_ = 0;
  AlignedBuffer<double> k_, kt_, v_;  // [key][channel], [channel][key], [key][channel]
  AlignedBuffer<double> s_;           // of one query
};

class DoubleForward : DoubleAttention {
 public:
  explicit DoubleForward(const AttentionSizes& most) : DoubleAttention(most) {}

  void begin(const ForwardRows<double>& rows) {
    rows_ = &rows;
    gather(rows.k, rows.v);
  }

  void operator()(int64_t panel) {
    const Parts panels = query_panels(rows_->q.count());
    for (int64_t n = panels.begin(panel); n < panels.end(panel); ++n) {
      scores(rows_->q[n]);
      double top = s_[0], sum = 0;
      for (int64_t m = 1; m < keys_; ++m) top = std::max(top, s_[m]);
      for (int64_t m = 0; m < keys_; ++m) sum += s_[m] = __builtin_exp(s_[m] - top);
      rows_->lse[n] = top + __builtin_log(sum);
      double* o = rows_->out[n];
      for (int c = 0; c < dv_; ++c) o[c] = 0;
      for (int64_t m = 0; m < keys_; ++m)
        for (int c = 0; c < dv_; ++c) o[c] += s_[m] / sum * v_[m * dv_ + c];
    }
  }

 private:
  const ForwardRows<double>* rows_ = nullptr;
};

class DoubleBackward : DoubleAttention {
 public:
  DoubleBackward(const AttentionSizes& most, BackwardNeeds)
      : DoubleAttention(most),
        vt_(most.keys * most.dv),
        ds_(most.keys),
        dq_(most.queries * most.d),
        dk_(most.keys * most.d),
        dv_sums_(most.keys * most.dv) {}

  void begin(const BackwardRows<double>& rows) {
    rows_ = &rows;
    gather(rows.k, rows.v);
    for (int64_t m = 0; m < keys_; ++m)
      for (int c = 0; c < dv_; ++c) vt_[c * keys_ + m] = v_[m * dv_ + c];
  }

  void operator()(int64_t) {
    for (int64_t i = 0; i < rows_->q.count() * d_; ++i) dq_[i] = 0;
    for (int64_t i = 0; i < keys_ * d_; ++i) dk_[i] = 0;
    for (int64_t i = 0; i < keys_ * dv_; ++i) dv_sums_[i] = 0;
    for (int64_t n = 0; n < rows_->q.count(); ++n) add_query(n);
  }

  int64_t tiles() const { return 1; }
  const double* query_sum(int64_t i) const { return dq_ + i * d_; }
  const double* key_sum(int t) const { return dk_ + t * d_; }
  const double* value_sum(int t) const { return dv_sums_ + t * dv_; }
  int64_t first_key() const { return 0; }
  int tile_keys() const { return static_cast<int>(keys_); }

 private:
  void add_query(int64_t n) {
    const double *q = rows_->q[n], *g = rows_->grad_out[n], *o = rows_->out[n];
    double delta = 0;
    for (int c = 0; c < dv_; ++c) delta += o[c] * g[c];
    scores(q);
    for (int64_t m = 0; m < keys_; ++m) ds_[m] = -delta;
    for (int c = 0; c < dv_; ++c)
      for (int64_t m = 0; m < keys_; ++m) ds_[m] += g[c] * vt_[c * keys_ + m];
    for (int64_t m = 0; m < keys_; ++m) {
      const double weight = __builtin_exp(s_[m] - rows_->lse[n]), ds = weight * ds_[m];
      for (int c = 0; c < dv_; ++c) dv_sums_[m * dv_ + c] += weight * g[c];
      for (int c = 0; c < d_; ++c) {
        dk_[m * d_ + c] += ds * q[c];
        dq_[n * d_ + c] += ds * k_[m * d_ + c];
      }
    }
  }

  const BackwardRows<double>* rows_ = nullptr;
  AlignedBuffer<double> vt_, ds_;            // [channel][key]; of one query
  AlignedBuffer<double> dq_, dk_, dv_sums_;  // [query or key][channel]
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
