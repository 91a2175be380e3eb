// Forward and backward in float64, in plain C++: what gradcheck and precise comparisons run on. The
// innermost loops run over contiguous memory and reduce nothing, so that the compiler vectorises.
#pragma once

#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Keys and values of one image and head, and the scores of one query at a time.
class DoubleAttention {
 public:
  explicit DoubleAttention(const MultiscaleAttentionParams& p)
      : p_(p), rows_(p.M), q_(p.d), k_(p.M * p.d), kt_(p.M * p.d), v_(p.M * p.dv), s_(p.M) {}

 protected:
  void gather(int64_t image, int head) {
    rows_.clear();
    for (int i = 0; i < p_.segments; ++i) rows_.add(p_.segment[i].k, image, head, p_.segment[i].M);
    for (int64_t m = 0; m < p_.M; ++m)
      for (int c = 0; c < p_.d; ++c) k_[m * p_.d + c] = kt_[c * p_.M + m] = rows_.from(m)[0][c];
    rows_.clear();
    for (int i = 0; i < p_.segments; ++i) rows_.add(p_.segment[i].v, image, head, p_.segment[i].M);
    for (int64_t m = 0; m < p_.M; ++m)
      for (int c = 0; c < p_.dv; ++c) v_[m * p_.dv + c] = rows_.from(m)[0][c];
  }

  static const double* row(const AttentionTokens& tokens, int64_t image, int head, int64_t n) {
    return static_cast<const double*>(tokens.data) + image * tokens.stride[0] +
           n * tokens.stride[1] + head * tokens.stride[2];
  }

  void scores(int64_t image, int head, int64_t n) {
    const double* q = row(p_.q, image, head, n);
    for (int64_t m = 0; m < p_.M; ++m) s_[m] = 0;
    for (int c = 0; c < p_.d; ++c)
      for (int64_t m = 0; m < p_.M; ++m) s_[m] += p_.scale * q[c] * kt_[c * p_.M + m];
  }

  double& lse(int64_t image, int head, int64_t n) const {
    return static_cast<double*>(p_.lse)[(image * p_.h + head) * p_.N + n];
  }
  double* out(int64_t image, int head, int64_t n) const {
    return static_cast<double*>(p_.out) + ((image * p_.N + n) * p_.h + head) * p_.dv;
  }

  const MultiscaleAttentionParams& p_;
  RowAddresses<double> rows_;
  AlignedBuffer<double> q_, k_, kt_, v_;  // [key][channel], [channel][key]
  AlignedBuffer<double> s_;               // of one query
};

class DoubleForward : DoubleAttention {
 public:
  using DoubleAttention::DoubleAttention;

  void operator()(int64_t image, int head, int64_t begin, int64_t end) {
    gather(image, head);
    for (int64_t n = begin; n < end; ++n) {
      scores(image, head, n);
      double top = s_[0], sum = 0;
      for (int64_t m = 1; m < p_.M; ++m) top = std::max(top, s_[m]);
      for (int64_t m = 0; m < p_.M; ++m) sum += s_[m] = __builtin_exp(s_[m] - top);
      lse(image, head, n) = top + __builtin_log(sum);
      double* o = out(image, head, n);
      for (int c = 0; c < p_.dv; ++c) o[c] = 0;
      for (int64_t m = 0; m < p_.M; ++m)
        for (int c = 0; c < p_.dv; ++c) o[c] += s_[m] / sum * v_[m * p_.dv + c];
    }
  }
};

class DoubleBackward : DoubleAttention {
 public:
  explicit DoubleBackward(const MultiscaleAttentionParams& p)
      : DoubleAttention(p), vt_(p.M * p.dv), ds_(p.M), dk_(p.M * p.d), dv_(p.M * p.dv), dq_(p.d) {}

  void operator()(int64_t image, int head) {
    gather(image, head);
    for (int64_t m = 0; m < p_.M; ++m)
      for (int c = 0; c < p_.dv; ++c) vt_[c * p_.M + m] = v_[m * p_.dv + c];
    for (int64_t i = 0; i < p_.M * p_.d; ++i) dk_[i] = 0;
    for (int64_t i = 0; i < p_.M * p_.dv; ++i) dv_[i] = 0;
    for (int64_t n = 0; n < p_.N; ++n) add_query(image, head, n);
    int64_t m = 0;
    for (int i = 0; i < p_.segments; ++i)
      for (int64_t key = 0; key < p_.segment[i].M; ++key, ++m) {
        const AttentionSegment& s = p_.segment[i];
        const int64_t to = (image * s.M + key) * p_.h + head;
        copy(s.grad_k, to * p_.d, dk_ + m * p_.d, p_.d);
        copy(s.grad_v, to * p_.dv, dv_ + m * p_.dv, p_.dv);
      }
  }

 private:
  void add_query(int64_t image, int head, int64_t n) {
    const double *q = row(p_.q, image, head, n), *g = row(p_.grad_out, image, head, n);
    const double *o = out(image, head, n), l = lse(image, head, n);
    double delta = 0;
    for (int c = 0; c < p_.dv; ++c) delta += o[c] * g[c];
    scores(image, head, n);
    for (int64_t m = 0; m < p_.M; ++m) ds_[m] = -delta;
    for (int c = 0; c < p_.dv; ++c)
      for (int64_t m = 0; m < p_.M; ++m) ds_[m] += g[c] * vt_[c * p_.M + m];
    for (int c = 0; c < p_.d; ++c) dq_[c] = 0;
    for (int64_t m = 0; m < p_.M; ++m) {
      const double weight = __builtin_exp(s_[m] - l), ds = p_.scale * weight * ds_[m];
      for (int c = 0; c < p_.dv; ++c) dv_[m * p_.dv + c] += weight * g[c];
      for (int c = 0; c < p_.d; ++c) {
        dk_[m * p_.d + c] += ds * q[c];
        dq_[c] += ds * k_[m * p_.d + c];
      }
    }
    copy(p_.grad_q, ((image * p_.N + n) * p_.h + head) * p_.d, dq_, p_.d);
  }

  static void copy(void* to, int64_t offset, const double* from, int count) {
    if (!to) return;
    for (int c = 0; c < count; ++c) static_cast<double*>(to)[offset + c] = from[c];
  }

  AlignedBuffer<double> vt_, ds_, dk_, dv_, dq_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
