// Convolutional attention: parameters and launchers. Plain C++.
//
// Window (i, j) of a map has k x k slots; slot s is pixel
//
//   pos(i, j, s) = (stride i - padding + s / k, stride j - padding + s % k)
//
// Nothing compares queries with keys: every window and head has its own logits S (k^2 x k^2), and
// with A[p] = softmax over q of scale S[p, q],
//
//   y[x] = sum of A[p, q] v[pos(q)] over the windows and slots p at pixel x, and all slots q
//
// Slots outside the map have value zero and keep their share of the softmax. Backward, with the
// gradient u of y:
//
//   dv[x]    = sum of A[p, q] u[pos(p)] over the windows and slots q at pixel x, and all slots p
//   dA[p, q] = <u[pos(p)], v[pos(q)]>
//   dS[p, q] = scale A[p, q] (dA[p, q] - sum_q' A[p, q'] dA[p, q'])
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

constexpr int kMaxConvKernel = 7;

struct ConvAttentionParams {
  DType dtype;         // of everything
  int64_t B, H, W, C;  // none is zero when a launcher is called
  int64_t H2, W2;      // rows and columns of windows
  int32_t h, d;        // heads, channels of a head: C = h d
  int32_t kernel, stride, padding;
  double scale;

  InputMap v;
  const void* logits;  // (B, H2, W2, h, k^2, k^2) contiguous
  void* y;             // (B, H, W, C) contiguous

  // Backward only; gradients are contiguous, and null when not asked for.
  InputMap grad_out;
  void* grad_v;       // (B, H, W, C)
  void* grad_logits;  // like logits
  void* statistics;   // CUDA, for grad_v: (B, H2, W2, h, k^2, 2) float32
};

// CPU. A launch is cut into chunks of windows by shape alone. One table per instruction set.
struct ConvAttentionCpu {
  int64_t (*chunks)(const ConvAttentionParams&);
  // The backward, where there is a grad_out.
  void (*compute)(const ConvAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
};

}  // namespace hybrid

// CUDA. They give 0 or a cudaError_t; the backward computes what has a place to go to.
extern "C" {
int hk_conv_attention_forward(const hybrid::ConvAttentionParams*, void* stream);
int hk_conv_attention_backward(const hybrid::ConvAttentionParams*, void* stream);
}
