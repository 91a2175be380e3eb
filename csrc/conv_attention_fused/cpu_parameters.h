// Parameters of the fused C-MHSA in the arithmetic's type, laid out for vectors of channels, and
// the sums of their gradients over a chunk.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"
#include "../common/partial_sums.h"
#include "conv_attention_fused.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kSlots = 9, kPairs = kSlots * kSlots;

template <class T>
struct Parameters {
  using Scalar = typename Arithmetic<T>::Scalar;
  const int64_t C, width;       // channels; in whole vectors
  const int64_t value_width;    // of all heads, each in whole vectors
  AlignedBuffer<Scalar> taps;   // [tap][channel]
  AlignedBuffer<Scalar> logit;  // [head, pair][C]
  AlignedBuffer<Scalar> logit2,
      logit2_bias;                         // times scale, to base 2: [head, pair][C], [head, pair]
  AlignedBuffer<Scalar> value;             // [output channel][input channel]
  AlignedBuffer<Scalar> value_transposed;  // [input channel][head, output channel]

  explicit Parameters(const ConvAttentionFusedParams& p)
      : C(p.windows.C),
        width(whole_vectors<T>(C)),
        value_width(p.windows.h * whole_vectors<T>(p.windows.d)),
        taps(size(kSlots * width)),
        logit(size(kPairs * p.windows.h * C)),
        logit2(size(kPairs * p.windows.h * C)),
        logit2_bias(size(kPairs * p.windows.h)),
        value(size(C * width)),
        value_transposed(size(C * value_width)) {
    const int64_t rows = kPairs * p.windows.h, d = p.windows.d;
    copy_rows(p.dw_weight, kSlots, taps);
    copy_rows(p.value_weight, C, value);
    const Scalar factor = static_cast<Scalar>(p.windows.scale * 1.4426950408889634);
    for (int64_t i = 0; i < rows * C; ++i) {
      logit[i] = at(p.logit_weight, i);
      logit2[i] = logit[i] * factor;
    }
    for (int64_t i = 0; i < rows; ++i)
      logit2_bias[i] = p.logit_bias ? at(p.logit_bias, i) * factor : 0;
    zero(&value_transposed[0], C * value_width);
    for (int64_t out = 0; out < C; ++out)
      for (int64_t in = 0; in < C; ++in)
        value_transposed[in * value_width + out / d * whole_vectors<T>(d) + out % d] =
            value[out * width + in];
  }

 private:
  static size_t size(int64_t count) { return static_cast<size_t>(count); }

  static Scalar at(const void* data, int64_t i) { return to_float(static_cast<const T*>(data)[i]); }

  void copy_rows(const void* from, int64_t rows, Scalar* to) const {
    zero(to, rows * width);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < C; ++c) to[r * width + c] = at(from, r * C + c);
  }
};

// Where the sums of a chunk lie in the workspace; those that nobody asks for take no room.
template <class T>
struct ChunkSums {
  using Scalar = typename Arithmetic<T>::Scalar;
  int64_t width, logit, bias, value, dw, all;  // of a row; where the others begin; of a chunk
  int64_t logits;                              // rows of logits

  explicit ChunkSums(const ConvAttentionFusedParams& p)
      : width(whole_vectors<T>(p.windows.C)), logit(0), logits(kPairs * p.windows.h) {
    bias = logit + (p.grad_logit ? logits * width : 0);
    value = bias + (p.grad_logit ? whole_vectors<T>(logits) : 0);
    dw = value + (p.grad_value ? p.windows.C * width : 0);
    all = dw + (p.grad_dw ? kSlots * width : 0);
  }

  // Of all chunks -> gradients, which have C channels in a row.
  void reduce(const ConvAttentionFusedParams& p, int64_t chunks) const {
    const int64_t C = p.windows.C;
    sum_rows(p, chunks, logit, logits, C, p.grad_logit);
    sum_rows(p, chunks, value, C, C, p.grad_value);
    sum_rows(p, chunks, dw, kSlots, C, p.grad_dw);
    sum_rows(p, chunks, bias, 1, logits, p.grad_bias);
  }

 private:
  void sum_rows(const ConvAttentionFusedParams& p, int64_t chunks, int64_t first, int64_t rows,
                int64_t count, void* grad) const {
    const Scalar* sums = static_cast<const Scalar*>(p.workspace) + first;
    for (int64_t r = 0; grad && r < rows; ++r)
      sum_parts(sums + r * width, chunks, all, count, static_cast<Scalar*>(grad) + r * count);
  }
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
