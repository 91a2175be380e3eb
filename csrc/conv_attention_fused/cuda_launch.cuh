// The stages of the fused C-MHSA on CUDA and what they leave for each other in the workspace. Each
// is a template over the data type, compiled in conv_attention_fused_cuda_<stage>.cu:
//
//   pool        D = depthwise convolution of x               forward, backward
//   pixels      V = N x; dx; dN                              forward, backward
//   windows     logits from D and M, on chip:
//                 y from V                                   forward
//                 dD, dM, dm, statistics of the softmax      backward
//                 dV from dy and the statistics              backward
//
// Bytes, with v those of x and v / 4 of D: the forward moves 5.5 v (x twice, V and D there and
// back, y). The logits, another 5 v for two heads of four channels each time that they are read or
// written, never leave the chip. Sums of parameters' gradients are partial sums per block, a number
// by shape alone, added in a fixed order.
#pragma once

#include "../common/device.h"
#include "conv_attention_fused.h"

namespace hybrid {

constexpr int kWindowSide = 3, kWindowSlots = kWindowSide * kWindowSide,
              kWindowPairs = kWindowSlots * kWindowSlots;
constexpr int kPartialBlocks = 256;  // that leave partial sums, at most

// How many do, each with some units of work.
inline int partial_blocks(int64_t units, int64_t units_of_a_block) {
  const int64_t blocks = ceil_div(units, units_of_a_block);
  return static_cast<int>(blocks < kPartialBlocks ? blocks : kPartialBlocks);
}

// Where things lie in p.workspace, by shape alone.
struct FusedWorkspace {
  void* values;        // V, in the data's type
  void* pooled;        // D, likewise
  void* grad_values;   // dV, likewise; the rest is float32
  float* statistics;   // (B, H2, W2, h, 9, 2)
  float* grad_pooled;  // dD
  float* partial;      // sums of one stage at a time
  int64_t bytes;

  explicit FusedWorkspace(const ConvAttentionFusedParams& p) : bytes(0) {
    const ConvAttentionParams& w = p.windows;
    const int64_t pixels = w.B * w.H * w.W, windows = w.B * w.H2 * w.W2;
    const int64_t element = w.dtype == DType::f32 ? 4 : 2;
    const bool is_backward = w.grad_out.data;
    const bool needs_values = w.grad_v || p.grad_value, needs_pooled = w.grad_v || p.grad_dw;
    char* const base = static_cast<char*>(p.workspace);
    const auto place = [&](bool needed, int64_t count, int64_t size) {
      char* const at = needed ? base + bytes : nullptr;
      if (needed) bytes += ceil_div<int64_t>(count * size, 256) * 256;
      return at;
    };
    const auto floats = [&](bool needed, int64_t count) {
      return reinterpret_cast<float*>(place(needed, count, sizeof(float)));
    };
    values = place(true, pixels * w.C, element);
    pooled = place(true, windows * w.C, element);
    grad_values = place(needs_values && is_backward, pixels * w.C, element);
    statistics = floats(needs_values && is_backward, windows * w.h * kWindowSlots * 2);
    grad_pooled = floats(needs_pooled && is_backward, windows * w.C);
    int64_t sums = 0;
    for (const int64_t stage : {p.grad_logit ? kWindowPairs * w.h * (w.C + 1) : 0,
                                p.grad_value ? w.C * w.C : 0, p.grad_dw ? kWindowSlots * w.C : 0})
      sums = stage > sums ? stage : sums;
    partial = floats(sums > 0, kPartialBlocks * sums);
  }
};

// A contiguous (B, H, W, C).
inline InputMap contiguous_map(const ConvAttentionParams& w, const void* data) {
  return {data, {w.H * w.W * w.C, w.W * w.C, w.C}};
}

// D = depthwise convolution of x.
template <class T>
int launch_pool(const ConvAttentionFusedParams& p, const FusedWorkspace& to, void* stream);
// The gradient of its taps.
template <class T>
int launch_tap_sums(const ConvAttentionFusedParams& p, const FusedWorkspace& from, void* stream);

// V = N x.
template <class T>
int launch_values(const ConvAttentionFusedParams& p, const FusedWorkspace& to, void* stream);
// dx = N^T dV + transposed depthwise convolution of dD.
template <class T>
int launch_grad_x(const ConvAttentionFusedParams& p, const FusedWorkspace& from, void* stream);
// dN = sum of dV x^T.
template <class T>
int launch_grad_value(const ConvAttentionFusedParams& p, const FusedWorkspace& from, void* stream);

// y from D and V.
template <class T>
int launch_forward_windows(const ConvAttentionFusedParams& p, const FusedWorkspace& from,
                           void* stream);
// dD, dM, dm and the statistics, from D, V and the gradient of y.
template <class T>
int launch_window_gradients(const ConvAttentionFusedParams& p, const FusedWorkspace& w,
                            void* stream);
// dV from D, the gradient of y and the statistics.
template <class T>
int launch_value_gradients(const ConvAttentionFusedParams& p, const FusedWorkspace& w,
                           void* stream);

}  // namespace hybrid
