// The fused C-MHSA over a chunk of windows. Lanes are windows, and heads take turns: what the
// logits of a window are generated from (D) serves all of its heads.
#pragma once

#include "../common/products.h"
#include "../conv_attention/cpu_lanes.h"
#include "../conv_attention/cpu_steps.h"
#include "cpu_parameters.h"

namespace hybrid {
namespace HYBRID_ISA {

// For data of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void conv_attention_fused_compute(const ConvAttentionFusedParams& p, int64_t begin, int64_t end);

namespace {

// Windows (of every head) in a chunk of small images; a chunk of the backward has sums of its own.
inline ChunkCut fused_cut(const ConvAttentionFusedParams& p) {
  return ChunkCut(p.windows, p.windows.grad_out.data ? 1024 : 256);
}

template <class T>
class FusedWindows {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Matrices = LaneMatrices<T>;
  static constexpr int kCount = Arithmetic<T>::kCount;

 public:
  explicit FusedWindows(const ConvAttentionFusedParams& p)
      : p_(p),
        w_(p.windows),
        is_backward_(w_.grad_out.data),
        needs_logit_grads_(w_.grad_v || p.grad_dw || p.grad_logit),
        needs_values_(!is_backward_ || needs_logit_grads_),
        needs_value_grads_(w_.grad_v || p.grad_value),
        needs_pooled_grads_(w_.grad_v || p.grad_dw),
        parameters_(p),
        places_(p),
        layout_(w_),
        x_layout_(StepLayout<T>::of_pixels(w_, layout_)),
        x_(w_, x_layout_, true),
        grad_x_(w_, x_layout_, w_.grad_v),
        values_(w_, layout_, needs_values_),
        grads_(w_, layout_, is_backward_),
        sums_(w_, layout_, !is_backward_ || needs_value_grads_),
        lanes_(w_, layout_, 1, needs_logit_grads_),
        x_walk_(w_, x_layout_, 1),
        weights_(kSlots),
        weight_grads_(needs_logit_grads_ ? kSlots : 0),
        pooled_(kCount * parameters_.width),
        pooled_lanes_(kCount * parameters_.width),
        grad_rows_(needs_pooled_grads_ ? kCount * parameters_.width : 0),
        pooled_grads_(needs_pooled_grads_ ? kCount * parameters_.width : 0),
        bias_lanes_(p.grad_logit ? kPairs * w_.h * kCount : 0) {
    if (needs_pooled_grads_) zero(&pooled_grads_[0], kCount * parameters_.width);
  }

  void compute(int64_t chunk) {
    chunk_sums_ = static_cast<Scalar*>(p_.workspace) + chunk * places_.all;
    if (is_backward_) zero(chunk_sums_, places_.all);
    if (p_.grad_logit) zero(&bias_lanes_[0], kPairs * w_.h * kCount);
    for_steps(w_, layout_, fused_cut(p_), chunk, [&](const Step& step) {
      start(step);
      compute(step);
      is_backward_ ? finish_backward(step) : write(step, sums_, w_.y);
    });
    for (int64_t i = 0; p_.grad_logit && i < kPairs * w_.h; ++i)
      for (int l = 0; l < kCount; ++l) chunk_sums_[places_.bias + i] += bias_lanes_[i * kCount + l];
  }

 private:
  // ---- pixels ----------------------------------------------------------------------------------

  void start(const Step& step) {
    const int64_t before = step.finished_before, kept = step.kept;
    const bool has_sums = !is_backward_ || needs_value_grads_;
    if (kept) {
      x_.slide(before, kept);
      if (needs_values_) values_.slide(before, kept);
      if (is_backward_) grads_.slide(before, kept);
      if (w_.grad_v) grad_x_.slide(before, kept);
      if (has_sums) sums_.slide(before, kept);
    }
    for (int64_t i = 0; i < step.images; ++i) {
      const int64_t image = step.image + i;
      x_.read(w_.v, i, image, step.first, kept, step.rows);
      for (int64_t r = kept; needs_values_ && r < step.rows; ++r) project(i, r);
      if (is_backward_) grads_.read(w_.grad_out, i, image, step.first, kept, step.rows);
      if (w_.grad_v) grad_x_.clear(i, kept, step.rows);
      if (has_sums) sums_.clear(i, kept, step.rows);
    }
  }

  // V = N x, of a row of pixels; zero beyond the map, as x is.
  void project(int64_t place, int64_t r) {
    Scalar* to = values_.pixels(place, r);
    const int64_t width = parameters_.value_width;
    const auto keep = [&](int64_t pixel, int j, V sum) __attribute__((always_inline)) {
      store(to + pixel * width + j * kCount, sum);
    };
    products<T>(x_.pixels(place, r), x_layout_.pixel, 1, w_.W, &parameters_.value_transposed[0],
                width, static_cast<int>(width / kCount), w_.C, keep);
  }

  void write(const Step& step, const PixelBuffer<T>& buffer, void* map) const {
    for (int64_t i = 0; i < step.images; ++i)
      buffer.write(map, i, step.image + i, step.first, step.finished, step.own_begin, step.own_end);
  }

  // The way back of `project`, of the rows that are complete.
  void finish_backward(const Step& step) {
    if (!needs_value_grads_) return;
    for (int64_t i = 0; i < step.images; ++i)
      for (int64_t r = 0; r < step.finished; ++r) {
        if (!step.owns(r)) continue;
        for (int64_t n = 0; n < w_.h; ++n) {
          if (p_.grad_value) add_value_weight_grads(i, r, n);
          if (w_.grad_v) add_grad_x(i, r, n);
        }
      }
    if (w_.grad_v) write(step, grad_x_, w_.grad_v);
  }

  // dN += dV x^T, rows of a head's channels.
  void add_value_weight_grads(int64_t place, int64_t r, int64_t head) {
    const Scalar* grad = sums_.pixels(place, r) + head * layout_.channels;
    add_products(grad, 1, layout_.pixel, w_.d, x_.pixels(place, r), w_.W,
                 chunk_sums_ + places_.value + head * w_.d * parameters_.width);
  }

  // dx += N^T dV, from a head's channels.
  void add_grad_x(int64_t place, int64_t r, int64_t head) {
    const Scalar* grad = sums_.pixels(place, r) + head * layout_.channels;
    add_products(grad, layout_.pixel, 1, w_.W, parameters_.value + head * w_.d * parameters_.width,
                 w_.d, grad_x_.pixels(place, r));
  }

  // to += a b, where rows of b and of the result have the channels of a pixel.
  void add_products(const Scalar* a, int64_t row, int64_t step, int64_t rows, const Scalar* b,
                    int64_t inner, Scalar* to) {
    const int64_t width = parameters_.width;
    const auto add = [&](int64_t r, int j, V sum) __attribute__((always_inline)) {
      Scalar* at = to + r * width + j * kCount;
      store(at, load(at) + sum);
    };
    products<T>(a, row, step, rows, b, width, static_cast<int>(width / kCount), inner, add);
  }

  // ---- windows ---------------------------------------------------------------------------------

  void compute(const Step& step) {
    const int64_t count = step.images * step.windows * w_.W2;
    lanes_.start(step.windows);
    x_walk_.start(step.windows);
    for (int64_t i = 0; i < count; i += kCount) {
      const int lanes = static_cast<int>(smaller(kCount, count - i));
      lanes_.take(lanes);
      for (int l = 0; l < lanes; ++l) x_base_[l] = x_walk_.next();
      pool(lanes);
      for (int64_t head = 0; head < w_.h; ++head) {
        generate_weights(head);
        is_backward_ ? backward(head, lanes, step.is_own) : forward(head);
      }
      if (needs_pooled_grads_) backward_pool(lanes, step.is_own);
    }
  }

  void forward(int64_t head) {
    const int64_t first = head * layout_.channels;
    lanes_.template mix<false>(weights_, values_.data() + first, sums_.data() + first);
  }

  void backward(int64_t head, int lanes, bool is_own) {
    const int64_t first = head * layout_.channels;
    if (needs_value_grads_)
      lanes_.template mix<true>(weights_, grads_.data() + first, sums_.data() + first);
    if (!needs_logit_grads_) return;
    lanes_.multiply(grads_.data() + first, values_.data() + first, weight_grads_);
    weight_grads_.template softmax_backward<kSlots>(weights_, w_.scale);
    for (int64_t e = 0; lanes < kCount && e < kPairs; ++e)
      zero(weight_grads_.at(static_cast<int>(e)) + lanes, kCount - lanes);
    if (p_.grad_logit && is_own) add_logit_weight_grads(head);
    if (needs_pooled_grads_) add_pooled_grads(head);
  }

  // D of every window: rows of channels, and transposed.
  void pool(int lanes) {
    const int64_t width = parameters_.width;
    for (int64_t c = 0; c < width; c += kCount) {
      V taps[kSlots];
#pragma GCC unroll 9
      for (int s = 0; s < kSlots; ++s) taps[s] = tap(s, c);
      for (int l = 0; l < lanes; ++l) {
        V sum = broadcast(Scalar(0));
#pragma GCC unroll 9
        for (int s = 0; s < kSlots; ++s)
          sum = fma(load(x_.data() + x_base_[l] + x_slot(s) + c), taps[s], sum);
        store(pooled_ + l * width + c, sum);
      }
    }
    zero(pooled_ + lanes * width, (kCount - lanes) * width);
    to_lanes(pooled_, pooled_lanes_);
  }

  // What D's gradients give to the taps and to x.
  void backward_pool(int lanes, bool is_own) {
    const int64_t width = parameters_.width;
    to_rows(pooled_grads_, grad_rows_);
    Scalar* tap_sums = p_.grad_dw && is_own ? chunk_sums_ + places_.dw : nullptr;
    for (int l = 0; l < lanes; ++l)
      for (int64_t c = 0; c < width; c += kCount) {
        const V grad = load(grad_rows_ + l * width + c);
        for (int s = 0; s < kSlots; ++s) {
          const int64_t pixel = x_base_[l] + x_slot(s) + c;
          if (tap_sums) add(tap_sums + s * width + c, grad, load(x_.data() + pixel));
          if (w_.grad_v) add(grad_x_.data() + pixel, grad, tap(s, c));
        }
      }
  }

  static void add(Scalar* to, V a, V b) { store(to, fma(a, b, load(to))); }

  V tap(int s, int64_t c) const { return load(parameters_.taps + s * parameters_.width + c); }

  int64_t x_slot(int s) const { return s / 3 * x_layout_.row + s % 3 * x_layout_.pixel; }

  // Rows of channels -> lanes of windows, and back.
  void to_lanes(const Scalar* rows, Scalar* lanes) const {
    const int64_t width = parameters_.width;
    for (int64_t c = 0; c < width; c += kCount)
      transpose_block(rows + c, width, lanes + c * kCount, kCount);
  }
  void to_rows(const Scalar* lanes, Scalar* rows) const {
    const int64_t width = parameters_.width;
    for (int64_t c = 0; c < width; c += kCount)
      transpose_block(lanes + c * kCount, kCount, rows + c, width);
  }

  static void transpose_block(const Scalar* from, int64_t from_row, Scalar* to, int64_t to_row) {
    V block[kCount];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) block[i] = load(from + i * from_row);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) store(to + i * to_row, block[i]);
  }

  // softmax(scale * (M D + m)) of a head, a row of nine logits at a time. The parameters have the
  // factor in them, and are to base 2.
  void generate_weights(int64_t head) {
    const Scalar *rows = parameters_.logit2 + head * kPairs * w_.C,
                 *bias = parameters_.logit2_bias + head * kPairs;
    for (int64_t e = 0; e < kPairs; e += kSlots) {
      V row[kSlots];
      product_block<T, kSlots, 1>(rows + e * w_.C, w_.C, 1, &pooled_lanes_[0], kCount, w_.C,
                                  [&](int q, int, V sum) __attribute__((always_inline)) {
                                    row[q] = sum + broadcast(bias[e + q]);
                                  });
      softmax_row<T>(row);
#pragma GCC unroll 9
      for (int q = 0; q < kSlots; ++q) store(weights_.at(static_cast<int>(e + q)), row[q]);
    }
  }

  // dM += dS D^T, dm += dS.
  void add_logit_weight_grads(int64_t head) {
    const int64_t first = head * kPairs;
    add_products(weight_grads_.at(0), kCount, 1, kPairs, &pooled_[0], kCount,
                 chunk_sums_ + first * parameters_.width);
    for (int64_t e = 0; e < kPairs; ++e) {
      Scalar* sum = bias_lanes_ + (first + e) * kCount;
      store(sum, load(sum) + load(weight_grads_.at(static_cast<int>(e))));
    }
  }

  // dD = sum of M^T dS over the heads.
  void add_pooled_grads(int64_t head) {
    const auto add = [&](int64_t c, int, V sum) __attribute__((always_inline)) {
      Scalar* at = pooled_grads_ + c * kCount;
      store(at, head ? load(at) + sum : sum);
    };
    products<T>(parameters_.logit + head * kPairs * w_.C, 1, w_.C, w_.C, weight_grads_.at(0),
                kCount, 1, kPairs, add);
  }

  const ConvAttentionFusedParams& p_;
  const ConvAttentionParams& w_;
  const bool is_backward_, needs_logit_grads_, needs_values_, needs_value_grads_,
      needs_pooled_grads_;
  const Parameters<T> parameters_;
  const ChunkSums<T> places_;
  const StepLayout<T> layout_, x_layout_;  // heads in whole vectors; all channels side by side
  PixelBuffer<T> x_, grad_x_;
  PixelBuffer<T> values_, grads_, sums_;  // V, the gradient of y, and what windows add up to
  LaneWindows<T, kSlots> lanes_;
  WindowWalk<T> x_walk_;
  int64_t x_base_[kCount];  // of the first pixel in x_layout_, for each lane
  Matrices weights_, weight_grads_;
  AlignedBuffer<Scalar> pooled_, pooled_lanes_;     // D: [lane][channel], [channel][lane]
  AlignedBuffer<Scalar> grad_rows_, pooled_grads_;  // its gradients, likewise
  AlignedBuffer<Scalar> bias_lanes_;                // sums of dS over a chunk: [head, pair][lane]
  Scalar* chunk_sums_ = nullptr;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
