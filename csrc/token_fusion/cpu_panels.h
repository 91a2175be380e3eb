// Panels of pixels, all heads of each.
#pragma once

#include "../common/attention/cpu_few_keys.h"
#include "token_fusion.h"

namespace hybrid {
namespace HYBRID_ISA {

// For data of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void token_fusion_forward(const TokenFusionParams& p, int64_t begin, int64_t end);
template <class T>
void token_fusion_backward(const TokenFusionParams& p, int64_t begin, int64_t end);

namespace {

using Params = TokenFusionParams;

// The panels of some chunks, in float (double).
template <class T>
class Panels {
  using Scalar = typename Arithmetic<T>::Scalar;
  using Attention = FewKeys<T>;
  static constexpr int64_t kPanel = Attention::kPanel;

 public:
  explicit Panels(const Params& p)
      : p_(p),
        C_(p.h * p.d),
        sums_(Attention::sums(p.M, p.h, p.d)),
        attention_(p.M, p.h, p.d, p.scale),
        q_(rows()),
        in_(rows()),
        grad_q_(p.grad_q ? rows() : 0) {}

  void forward(int64_t chunk) {
    for_panels(chunk, [&](int64_t first, int64_t count) {
      load_rows(p_.q, first, count, q_);
      load_rows(p_.y, first, count, in_);
      attention_.add_attention(q_, in_, C_, count);
      store_rows(in_, first, count, p_.out);
    });
  }

  void backward(int64_t chunk) {
    Scalar* sums = p_.grad_kv ? chunk_sums(chunk) : nullptr;
    if (sums) zero(sums, sums_);
    for_panels(chunk, [&](int64_t first, int64_t count) {
      load_rows(p_.q, first, count, q_);
      load_rows(p_.grad, first, count, in_);
      attention_.backward(q_, in_, p_.grad_q ? &grad_q_[0] : nullptr, sums, C_, count);
      if (p_.grad_q) store_rows(grad_q_, first, count, p_.grad_q);
    });
  }

  int64_t workspace_bytes() const {
    const int64_t chunks = p_.grad_kv ? p_.B * fusion_pieces(p_) : 0;
    return chunks * sums_ * int64_t{sizeof(Scalar)};
  }

  void reduce(int64_t image) const {
    T* grad = static_cast<T*>(p_.grad_kv) + image * p_.M * 2 * C_;
    Attention::reduce(p_.M, p_.h, p_.d, chunk_sums(image * fusion_pieces(p_)), fusion_pieces(p_),
                      sums_, grad);
  }

 private:
  size_t rows() const { return static_cast<size_t>(kPanel * C_ + Attention::kSlack); }

  Scalar* chunk_sums(int64_t chunk) const {
    return static_cast<Scalar*>(p_.workspace) + chunk * sums_;
  }

  template <class Body>
  void for_panels(int64_t chunk, const Body& body) {
    const int64_t pieces = fusion_pieces(p_), image = chunk / pieces, piece = chunk % pieces;
    if (image != image_) {
      const T* kv = static_cast<const T*>(p_.kv) + image * p_.kv_stride[0];
      attention_.begin({kv, p_.kv_stride[1], p_.kv_stride[2], p_.kv_stride[3]});
    }
    image_ = image;
    const int64_t end = p_.N * (piece + 1) / pieces;
    for (int64_t first = p_.N * piece / pieces; first < end; first += kPanel)
      body(first, end - first < kPanel ? end - first : kPanel);
  }

  // Whole rows where the heads lie side by side.
  void load_rows(const AttentionTokens& tokens, int64_t first, int64_t count, Scalar* to) const {
    const int64_t heads = tokens.stride[2] == p_.d ? 1 : p_.h, width = C_ / heads;
    const T* image = static_cast<const T*>(tokens.data) + image_ * tokens.stride[0];
    for (int64_t i = first; i < first + count; ++i)
      for (int64_t head = 0; head < heads; ++head, to += width) {
        const T* row = image + i * tokens.stride[1] + head * tokens.stride[2];
        for_each_vector<T>(width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          store(to + c, load_lanes(row + c, lanes));
        });
      }
  }

  void store_rows(const Scalar* from, int64_t first, int64_t count, void* data) const {
    T* to = static_cast<T*>(data) + (image_ * p_.N + first) * C_;
    for_each_vector<T>(count * C_, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      store_lanes(to + i, load(from + i), lanes);
    });
  }

  const Params& p_;
  const int64_t C_, sums_;  // sums_: of a chunk, in elements
  Attention attention_;
  AlignedBuffer<Scalar> q_, in_, grad_q_;  // [pixel][channel]; in_: y, later z, or the gradient
  int64_t image_ = -1;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
