// The whole C-MHSA of EMSNet: parameters and launchers. Plain C++.
//
//   D = depthwise 3x3, stride 2, of x          S = M D + m, of every window and head 9 x 9
//   V = N x                                    y = convolutional attention of V and S
//
// with 3x3 windows of stride 2 and padding 1 (../conv_attention/conv_attention.h). Logits and
// weights exist for a few windows at a time, in registers and caches. Backward, with the gradients
// dS and dV of the attention; D, V and S are computed again:
//
//   dD = M^T dS    dM = sum of dS D^T    dm = sum of dS    dN = sum of dV x^T
//   dx = N^T dV + transposed depthwise convolution of dD       ddw[tap] = sum of dD x[tap]
#pragma once

#include "../conv_attention/conv_attention.h"

namespace hybrid {

struct ConvAttentionFusedParams {
  // dtype is that of everything but the gradients of parameters, which are float32 (float64). Here
  // v is the map x, and grad_v its gradient; there are no logits.
  ConvAttentionParams windows;
  const void* dw_weight;     // (3, 3, C) contiguous
  const void* logit_weight;  // (81 h, C) contiguous, rows (head, output slot, input slot)
  const void* logit_bias;    // (81 h,) contiguous; or null
  const void* value_weight;  // (C, C) contiguous

  // Backward only; gradients are contiguous, and null when not asked for.
  void* grad_dw;
  void* grad_logit;
  void* grad_bias;
  void* grad_value;
  void* workspace;  // CPU: partial sums of these, per chunk. CUDA, forward too: cuda_launch.cuh
};

// CPU. A launch is cut into chunks of windows by shape alone. One table per instruction set.
struct ConvAttentionFusedCpu {
  int64_t (*chunks)(const ConvAttentionFusedParams&);
  int64_t (*workspace_bytes)(const ConvAttentionFusedParams&);  // of the backward
  // The backward, where there is a grad_out.
  void (*compute)(const ConvAttentionFusedParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward: workspace -> gradients of the parameters.
  void (*reduce)(const ConvAttentionFusedParams&);
};

}  // namespace hybrid

// CUDA. They give 0 or a cudaError_t; the backward computes what has a place to go to.
extern "C" {
int64_t hk_conv_attention_fused_workspace_bytes(const hybrid::ConvAttentionFusedParams*);
int hk_conv_attention_fused_forward(const hybrid::ConvAttentionFusedParams*, void* stream);
int hk_conv_attention_fused_backward(const hybrid::ConvAttentionFusedParams*, void* stream);
}
