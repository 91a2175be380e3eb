// Convolutional attention over a chunk of windows whose logits are given.
#pragma once

#include "cpu_lanes.h"
#include "cpu_steps.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// kSlots: 9, or 0 for windows of any size.
template <class T, int kSlots>
class Windows {
  using Matrices = LaneMatrices<T>;
  static constexpr int kCount = Arithmetic<T>::kCount;

 public:
  explicit Windows(const ConvAttentionParams& p)
      : p_(p),
        size_(int64_t{p.kernel} * p.kernel * p.kernel * p.kernel),
        layout_(p),
        is_backward_(p.grad_out.data),
        values_(p, layout_, !is_backward_ || p.grad_logits),
        grads_(p, layout_, is_backward_),
        sums_(p, layout_, !is_backward_ || p.grad_v),
        lanes_(p, layout_, p.h, p.grad_logits),
        weights_(p.kernel * p.kernel),
        weight_grads_(p.grad_logits ? p.kernel * p.kernel : 0) {}

  void compute(int64_t chunk) {
    for_steps(p_, layout_, ChunkCut(p_), chunk, [&](const Step& step) {
      start(step);
      compute(step);
      void* map = is_backward_ ? p_.grad_v : p_.y;
      for (int64_t i = 0; map && i < step.images; ++i)
        sums_.write(map, i, step.image + i, step.first, step.finished, step.own_begin,
                    step.own_end);
    });
  }

 private:
  void start(const Step& step) {
    const bool has_values = !is_backward_ || p_.grad_logits, has_sums = !is_backward_ || p_.grad_v;
    if (step.kept && has_values) values_.slide(step.finished_before, step.kept);
    if (step.kept && is_backward_) grads_.slide(step.finished_before, step.kept);
    if (step.kept && has_sums) sums_.slide(step.finished_before, step.kept);
    for (int64_t i = 0; i < step.images; ++i) {
      const int64_t image = step.image + i;
      if (has_values) values_.read(p_.v, i, image, step.first, step.kept, step.rows);
      if (is_backward_) grads_.read(p_.grad_out, i, image, step.first, step.kept, step.rows);
      if (has_sums) sums_.clear(i, step.kept, step.rows);
    }
  }

  // All heads of all windows of the step: neighbours in memory, as many at once as there are lanes.
  void compute(const Step& step) {
    const int64_t first = (step.image * p_.H2 + step.window) * p_.W2 * p_.h;
    const int64_t count = step.images * step.windows * p_.W2 * p_.h;
    lanes_.start(step.windows);
    for (int64_t i = 0; i < count; i += kCount) {
      const int lanes = static_cast<int>(smaller(kCount, count - i));
      lanes_.take(lanes);
      load_weights(first + i, lanes);
      if (is_backward_)
        backward(first + i, lanes, step.is_own && p_.grad_logits);
      else
        lanes_.template mix<false>(weights_, values_.data(), sums_.data());
    }
  }

  void load_weights(int64_t item, int lanes) {
    weights_.load_from(static_cast<const T*>(p_.logits) + item * size_, size_, lanes);
    weights_.template softmax<kSlots>(p_.scale);
  }

  void backward(int64_t item, int lanes, bool need_logits) {
    if (p_.grad_v) lanes_.template mix<true>(weights_, grads_.data(), sums_.data());
    if (!need_logits) return;
    lanes_.multiply(grads_.data(), values_.data(), weight_grads_);
    weight_grads_.template softmax_backward<kSlots>(weights_, p_.scale);
    weight_grads_.store_to(static_cast<T*>(p_.grad_logits) + item * size_, size_, lanes);
  }

  const ConvAttentionParams& p_;
  const int64_t size_;  // of a window's logits, of a head
  const StepLayout<T> layout_;
  const bool is_backward_;
  PixelBuffer<T> values_, grads_, sums_;  // v, the gradient of y, and what windows add up to
  LaneWindows<T, kSlots> lanes_;
  Matrices weights_, weight_grads_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
