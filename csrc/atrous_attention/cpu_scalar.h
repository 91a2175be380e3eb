// One window and head in plain C++: any instruction set, any element type T, arithmetic in Acc.
// The innermost loops run over contiguous memory without reductions, so the compiler vectorises.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/float16.h"
#include "tokens.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }
inline float logarithm(float x) { return __builtin_logf(x); }
inline double logarithm(double x) { return __builtin_log(x); }

template <class T, class Acc>
inline T from_acc(Acc x) {
  if constexpr (sizeof(T) == sizeof(Acc))
    return x;
  else
    return from_float<T>(x);
}

template <class T, class Acc>
class ScalarTile {
 public:
  explicit ScalarTile(const AtrousAttentionParams& p)
      : p_(p),
        e_(p.e),
        q_(tokens(p) * p.e),
        k_(tokens(p) * p.e),
        v_(tokens(p) * p.e),
        g_(tokens(p) * p.e),
        kt_(tokens(p) * p.e),
        vt_(tokens(p) * p.e),
        dk_(tokens(p) * p.e),
        dv_(tokens(p) * p.e),
        dq_(p.e),
        s_(tokens(p)),
        ds_(tokens(p)),
        dbias_(offsets(p) * p.h) {}
  static int tokens(const AtrousAttentionParams& p) { return p.P * p.P; }
  static int64_t offsets(const AtrousAttentionParams& p) { return (2 * p.P - 1) * (2 * p.P - 1); }

  void begin_chunk(int64_t) {
    for (int64_t i = 0; i < offsets(p_) * p_.h; ++i) dbias_[i] = 0;
  }
  void end_chunk(int64_t chunk) {
    if (!p_.grad_bias) return;
    Acc* w = static_cast<Acc*>(p_.workspace) + chunk * offsets(p_) * p_.h;
    for (int64_t i = 0; i < offsets(p_) * p_.h; ++i) w[i] = dbias_[i];
  }

  void forward(const Tokens& tokens, int head) {
    load(tokens, head);
    T* out = static_cast<T*>(p_.out);
    Acc* lse = static_cast<Acc*>(p_.lse);
    for (int s = 0; s < tokens.count; ++s) {
      scores(tokens, head, s);
      Acc top = s_[0], sum = 0;
      for (int t = 1; t < tokens.count; ++t) top = s_[t] > top ? s_[t] : top;
      for (int t = 0; t < tokens.count; ++t) sum += s_[t] = exponential(s_[t] - top);
      const int64_t row = (tokens.pixel[s] * p_.n + tokens.window.branch) * p_.h + head;
      lse[row] = top + logarithm(sum);
      for (int c = 0; c < e_; ++c) dq_[c] = 0;
      for (int t = 0; t < tokens.count; ++t)
        for (int c = 0; c < e_; ++c) dq_[c] += s_[t] * v_[t * e_ + c];
      for (int c = 0; c < e_; ++c) out[row * e_ + c] = from_acc<T>(dq_[c] / sum);
    }
  }

  void backward(const Tokens& tokens, int head) {
    load(tokens, head);
    const T* out = static_cast<const T*>(p_.out);
    const T* grad = static_cast<const T*>(p_.grad_out) + head * p_.grad_out_stride[4];
    const Acc* lse = static_cast<const Acc*>(p_.lse);
    const int m = tokens.count;
    for (int s = 0; s < m; ++s)
      for (int c = 0; c < e_; ++c) {
        g_[s * e_ + c] = to_float(grad[tokens.grad_out[s] + c]);
        vt_[c * m + s] = v_[s * e_ + c];
        dk_[s * e_ + c] = dv_[s * e_ + c] = 0;
      }
    for (int s = 0; s < m; ++s) {
      const int64_t row = (tokens.pixel[s] * p_.n + tokens.window.branch) * p_.h + head;
      Acc delta = 0;
      for (int c = 0; c < e_; ++c) delta += to_float(out[row * e_ + c]) * g_[s * e_ + c];
      scores(tokens, head, s);
      for (int t = 0; t < m; ++t) ds_[t] = -delta;
      for (int c = 0; c < e_; ++c)
        for (int t = 0; t < m; ++t) ds_[t] += g_[s * e_ + c] * vt_[c * m + t];
      for (int t = 0; t < m; ++t) ds_[t] *= s_[t] = exponential(s_[t] - lse[row]);
      if (p_.grad_bias)
        for (int t = 0; t < m; ++t) dbias_[offset(tokens, s, t) * p_.h + head] += ds_[t];
      if (!p_.grad_qkv) continue;
      for (int c = 0; c < e_; ++c) dq_[c] = 0;
      for (int t = 0; t < m; ++t)
        for (int c = 0; c < e_; ++c) {
          dq_[c] += ds_[t] * k_[t * e_ + c];
          dk_[t * e_ + c] += ds_[t] * q_[s * e_ + c];
          dv_[t * e_ + c] += s_[t] * g_[s * e_ + c];
        }
      store(tokens, head, s, 0, dq_, p_.scale);
    }
    if (!p_.grad_qkv) return;
    for (int t = 0; t < m; ++t) {
      store(tokens, head, t, 1, dk_ + t * e_, p_.scale);
      store(tokens, head, t, 2, dv_ + t * e_, 1);
    }
  }

 private:
  int64_t offset(const Tokens& tokens, int s, int t) const {
    const int cols = tokens.window.cols, side = 2 * p_.P - 1;
    return (s / cols - t / cols + p_.P - 1) * side + s % cols - t % cols + p_.P - 1;
  }

  void load(const Tokens& tokens, int head) {
    const T* qkv = static_cast<const T*>(p_.qkv) + head * p_.qkv_stride[5];
    const int64_t part = p_.qkv_stride[4];
    for (int t = 0; t < tokens.count; ++t)
      for (int c = 0; c < e_; ++c) {
        const T* x = qkv + tokens.qkv[t] + c;
        q_[t * e_ + c] = to_float(x[0]);
        k_[t * e_ + c] = kt_[c * tokens.count + t] = to_float(x[part]);
        v_[t * e_ + c] = to_float(x[2 * part]);
      }
  }

  void scores(const Tokens& tokens, int head, int s) {
    const Acc* bias = static_cast<const Acc*>(p_.bias);
    const int64_t table = tokens.window.branch * offsets(p_);
    for (int t = 0; t < tokens.count; ++t) s_[t] = 0;
    for (int c = 0; c < e_; ++c)
      for (int t = 0; t < tokens.count; ++t) s_[t] += q_[s * e_ + c] * kt_[c * tokens.count + t];
    for (int t = 0; t < tokens.count; ++t) {
      s_[t] *= static_cast<Acc>(p_.scale);
      if (bias) s_[t] += bias[(table + offset(tokens, s, t)) * p_.h + head];
    }
  }

  void store(const Tokens& tokens, int head, int t, int part, const Acc* row, Acc factor) const {
    T* grad = static_cast<T*>(p_.grad_qkv);
    grad += (((tokens.pixel[t] * p_.n + tokens.window.branch) * 3 + part) * p_.h + head) * e_;
    for (int c = 0; c < e_; ++c) grad[c] = from_acc<T>(factor * row[c]);
  }

  const AtrousAttentionParams& p_;
  const int e_;
  AlignedBuffer<Acc> q_, k_, v_, g_;  // [token][channel]
  AlignedBuffer<Acc> kt_, vt_;        // [channel][token]
  AlignedBuffer<Acc> dk_, dv_, dq_;   // [token][channel]; dq of one query
  AlignedBuffer<Acc> s_, ds_;         // of one query, over the keys
  AlignedBuffer<Acc> dbias_;          // [offset][head], of the chunk
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
