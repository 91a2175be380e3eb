// One image in float64, in plain C++: what gradcheck and precise comparisons run on.
#pragma once

#include "../common/aligned_buffer.h"
#include "single_query_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

class DoubleSingleQuery {
 public:
  explicit DoubleSingleQuery(const SingleQueryAttentionParams& p) : p_(p), key_(p.N), s_(p.N) {}

  void forward(int64_t image) {
    mark(image);
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g) {
        double top = -__builtin_inf(), sum = 0;
        for (int64_t i = 0; i < p_.N; ++i) {
          s_[i] = key_[i] ? p_.scale *
                                dot(row(p_.query, image, g, head), row(p_.k, image, i, head), p_.d)
                          : -__builtin_inf();
          top = s_[i] > top ? s_[i] : top;
        }
        double* o = out(image, g, head);
        for (int c = 0; c < p_.dv; ++c) o[c] = 0;
        for (int64_t i = 0; i < p_.N; ++i) {
          const double weight = __builtin_exp(s_[i] - top), *v = row(p_.v, image, i, head);
          sum += weight;
          for (int c = 0; c < p_.dv; ++c) o[c] += weight * v[c];
        }
        for (int c = 0; c < p_.dv; ++c) o[c] /= sum;
        lse(image, g, head) = top + __builtin_log(sum);
      }
  }

  // Adds to the gradient of the queries, which starts at zero.
  void backward(int64_t image) {
    mark(image);
    clear(p_.grad_k, image, p_.d);
    clear(p_.grad_v, image, p_.dv);
    for (int head = 0; head < p_.h; ++head)
      for (int g = 0; g < p_.G; ++g) {
        const double *q = row(p_.query, image, g, head), *u = row(p_.grad_out, image, g, head);
        const double delta = dot(u, out(image, g, head), p_.dv), l = lse(image, g, head);
        for (int64_t i = 0; i < p_.N; ++i) {
          if (!key_[i]) continue;
          const double *k = row(p_.k, image, i, head), *v = row(p_.v, image, i, head);
          const double weight = __builtin_exp(p_.scale * dot(q, k, p_.d) - l);
          const double ds = p_.scale * weight * (dot(u, v, p_.dv) - delta);
          add(p_.grad_k, (image * p_.N + i) * p_.h + head, q, ds, p_.d);
          void* grad_v = p_.values_are_keys ? p_.grad_k : p_.grad_v;
          add(grad_v, (image * p_.N + i) * p_.h + head, u, weight, p_.dv);
          add(p_.grad_query, ((p_.shared ? 0 : image) * p_.G + g) * p_.h + head, k, ds, p_.d);
        }
      }
  }

 private:
  void mark(int64_t image) {
    for (int64_t i = 0; i < p_.N; ++i) key_[i] = 1;
    for (int64_t i = 0; i < p_.excluded; ++i) key_[p_.exclude[image * p_.excluded + i]] = 0;
  }

  static const double* row(const AttentionTokens& tokens, int64_t image, int64_t i, int head) {
    return static_cast<const double*>(tokens.data) + image * tokens.stride[0] +
           i * tokens.stride[1] + head * tokens.stride[2];
  }
  double* out(int64_t image, int g, int head) const {
    return static_cast<double*>(p_.out) + ((image * p_.G + g) * p_.h + head) * p_.dv;
  }
  double& lse(int64_t image, int g, int head) const {
    return static_cast<double*>(p_.lse)[(image * p_.h + head) * p_.G + g];
  }

  static double dot(const double* a, const double* b, int e) {
    double sum = 0;
    for (int c = 0; c < e; ++c) sum += a[c] * b[c];
    return sum;
  }
  static void add(void* grad, int64_t index, const double* x, double factor, int e) {
    double* to = static_cast<double*>(grad) + index * e;
    for (int c = 0; grad && c < e; ++c) to[c] += factor * x[c];
  }
  void clear(void* grad, int64_t image, int e) const {
    const int64_t size = p_.N * p_.h * e;
    double* to = static_cast<double*>(grad) + image * size;
    for (int64_t i = 0; grad && i < size; ++i) to[i] = 0;
  }

  const SingleQueryAttentionParams& p_;
  AlignedBuffer<char> key_;  // whether a token is a key
  AlignedBuffer<double> s_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
