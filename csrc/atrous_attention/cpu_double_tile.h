// One window and head in float64, in plain C++: what gradcheck and precise comparisons run on. The
// innermost loops run over contiguous memory and reduce nothing, so that the compiler vectorises.
#pragma once

#include "../common/aligned_buffer.h"
#include "tokens.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Loads tokens and computes the scores of one query at a time.
class DoubleTile {
 public:
  explicit DoubleTile(const AtrousAttentionParams& p)
      : p_(p), e_(p.e), q_(size(p)), k_(size(p)), v_(size(p)), kt_(size(p)), s_(p.P * p.P) {}

 protected:
  static size_t size(const AtrousAttentionParams& p) { return size_t(p.P) * p.P * p.e; }

  void load(const Tokens& tokens, int head) {
    const double* qkv = static_cast<const double*>(p_.qkv) + head * p_.qkv_stride[5];
    const int64_t part = p_.qkv_stride[4];
    for (int t = 0; t < tokens.count; ++t)
      for (int c = 0; c < e_; ++c) {
        const double* x = qkv + tokens.qkv[t] + c;
        q_[t * e_ + c] = x[0];
        k_[t * e_ + c] = kt_[c * tokens.count + t] = x[part];
        v_[t * e_ + c] = x[2 * part];
      }
  }

  // Row of the bias table, one row for each offset of query s from key t.
  int64_t offset(const Tokens& tokens, int s, int t) const {
    const int cols = tokens.window.cols;
    return (s / cols - t / cols + p_.P - 1) * (2 * p_.P - 1) + s % cols - t % cols + p_.P - 1;
  }

  void scores(const Tokens& tokens, int head, int s) {
    const int m = tokens.count;
    for (int t = 0; t < m; ++t) s_[t] = 0;
    for (int c = 0; c < e_; ++c)
      for (int t = 0; t < m; ++t) s_[t] += q_[s * e_ + c] * kt_[c * m + t];
    for (int t = 0; t < m; ++t) s_[t] *= p_.scale;
    if (!p_.bias) return;
    const int64_t offsets = int64_t{2 * p_.P - 1} * (2 * p_.P - 1);
    const double* bias =
        static_cast<const double*>(p_.bias) + tokens.window.branch * offsets * p_.h;
    for (int t = 0; t < m; ++t) s_[t] += bias[offset(tokens, s, t) * p_.h + head];
  }

  const AtrousAttentionParams& p_;
  const int e_;
  AlignedBuffer<double> q_, k_, v_;  // [token][channel]
  AlignedBuffer<double> kt_;         // [channel][token]
  AlignedBuffer<double> s_;          // of one query, over the keys
};

class DoubleForwardTile : DoubleTile {
 public:
  explicit DoubleForwardTile(const AtrousAttentionParams& p) : DoubleTile(p) {}

  void begin_chunk() {}
  void end_chunk(int64_t) {}

  void operator()(const Tokens& tokens, int head, const Tokens&) {
    load(tokens, head);
    for (int s = 0; s < tokens.count; ++s) {
      scores(tokens, head, s);
      double top = s_[0], sum = 0;
      for (int t = 1; t < tokens.count; ++t) top = s_[t] > top ? s_[t] : top;
      for (int t = 0; t < tokens.count; ++t) sum += s_[t] = __builtin_exp(s_[t] - top);
      const int64_t row = tokens.row[s] + head;
      static_cast<double*>(p_.lse)[row] = top + __builtin_log(sum);
      double* out = static_cast<double*>(p_.out) + row * e_;
      for (int c = 0; c < e_; ++c) out[c] = 0;
      for (int t = 0; t < tokens.count; ++t)
        for (int c = 0; c < e_; ++c) out[c] += s_[t] / sum * v_[t * e_ + c];
    }
  }
};

class DoubleBackwardTile : DoubleTile {
 public:
  explicit DoubleBackwardTile(const AtrousAttentionParams& p)
      : DoubleTile(p),
        table_((2 * p.P - 1) * (2 * p.P - 1) * size_t(p.h)),
        vt_(size(p)),
        dk_(size(p)),
        dv_(size(p)),
        dq_(p.e),
        g_(p.e),
        ds_(p.P * p.P),
        grad_bias_(table_) {}

  void begin_chunk() {
    for (size_t i = 0; i < table_; ++i) grad_bias_[i] = 0;
  }
  void end_chunk(int64_t chunk) {
    if (!p_.grad_bias) return;
    double* table = static_cast<double*>(p_.workspace) + chunk * table_;
    for (size_t i = 0; i < table_; ++i) table[i] = grad_bias_[i];
  }

  void operator()(const Tokens& tokens, int head, const Tokens&) {
    const int m = tokens.count;
    load(tokens, head);
    for (int i = 0; i < m * e_; ++i) {
      vt_[i % e_ * m + i / e_] = v_[i];
      dk_[i] = dv_[i] = 0;
    }
    for (int s = 0; s < m; ++s) {
      score_grads(tokens, head, s);
      if (p_.grad_bias)
        for (int t = 0; t < m; ++t) grad_bias_[offset(tokens, s, t) * p_.h + head] += ds_[t];
      if (!p_.grad_qkv) continue;
      for (int c = 0; c < e_; ++c) dq_[c] = 0;
      for (int t = 0; t < m; ++t)
        for (int c = 0; c < e_; ++c) {
          dq_[c] += ds_[t] * k_[t * e_ + c];
          dk_[t * e_ + c] += ds_[t] * q_[s * e_ + c];
          dv_[t * e_ + c] += s_[t] * g_[c];
        }
      store(tokens.row[s], head, 0, dq_, p_.scale);
    }
    for (int t = 0; t < m && p_.grad_qkv; ++t) {
      store(tokens.row[t], head, 1, dk_ + t * e_, p_.scale);
      store(tokens.row[t], head, 2, dv_ + t * e_, 1);
    }
  }

 private:
  // Probabilities and score gradients of query s, over the keys.
  void score_grads(const Tokens& tokens, int head, int s) {
    const int m = tokens.count;
    const int64_t row = tokens.row[s] + head;
    const double* grad =
        static_cast<const double*>(p_.grad_out) + tokens.grad_out[s] + head * p_.grad_out_stride[4];
    const double* out = static_cast<const double*>(p_.out) + row * e_;
    double delta = 0;
    for (int c = 0; c < e_; ++c) delta += out[c] * (g_[c] = grad[c]);
    scores(tokens, head, s);
    for (int t = 0; t < m; ++t) ds_[t] = -delta;
    for (int c = 0; c < e_; ++c)
      for (int t = 0; t < m; ++t) ds_[t] += g_[c] * vt_[c * m + t];
    const double lse = static_cast<const double*>(p_.lse)[row];
    for (int t = 0; t < m; ++t) ds_[t] *= s_[t] = __builtin_exp(s_[t] - lse);
  }

  void store(int64_t row, int head, int part, const double* values, double factor) const {
    double* grad = static_cast<double*>(p_.grad_qkv) + (row * 3 + part * p_.h + head) * e_;
    for (int c = 0; c < e_; ++c) grad[c] = factor * values[c];
  }

  const size_t table_;
  AlignedBuffer<double> vt_, dk_, dv_;  // [channel][token]; [token][channel]
  AlignedBuffer<double> dq_, g_, ds_;   // of one query
  AlignedBuffer<double> grad_bias_;     // [offset][head], of the chunk
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
