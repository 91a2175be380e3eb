// Depthwise 3x3 convolutions of one map at several dilations: parameters and kernels.
//
//   y_k[o, p] = sum_uv weight_k[u, v] x[s o + (u - 1) d_k, s p + (v - 1) d_k]
//
// for every channel by itself and every branch k with dilation d_k, x being zero outside the map.
// Backward, with the gradients dy_k:
//
//   dx[i, j]         = sum of weight_k[u, v] dy_k[o, p] over all k, u, v, o, p that read x[i, j]
//   dweight_k[u, v]  = sum of dy_k[o, p] x[s o + (u - 1) d_k, s p + (v - 1) d_k]
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

constexpr int kMaxDilation = 64;

struct AtrousDwconvParams {
  DType dtype;         // of maps; weights are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called
  int64_t out_H, out_W;
  int64_t stride;
  int32_t n;  // branches, 1 to kMaxBranches
  int64_t dilation[kMaxBranches];

  InputMap x;
  const void* weight;  // (n, C, 3, 3) contiguous
  OutputMap y[kMaxBranches];

  // Backward only. What is not asked for is null.
  InputMap grad[kMaxBranches];  // of y
  OutputMap grad_x;
  void* grad_weight;  // (n, C, 3, 3)
  void* workspace;    // partial sums of the gradient of weight

  int64_t widest() const {  // of the dilations
    int64_t largest = 1;
    for (int k = 0; k < n; ++k) largest = dilation[k] > largest ? dilation[k] : largest;
    return largest;
  }
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h.
struct AtrousDwconvCpu {
  int64_t (*jobs)(const AtrousDwconvParams&);
  int64_t (*workspace_bytes)(const AtrousDwconvParams&);  // of the backward
  void (*forward)(const AtrousDwconvParams&, int64_t begin, int64_t end);
  void (*backward)(const AtrousDwconvParams&, int64_t begin, int64_t end);
  void (*reduce)(const AtrousDwconvParams&);  // after the backward: workspace -> gradient
};

}  // namespace hybrid
