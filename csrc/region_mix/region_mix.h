// Regional tokens returned to their pixels, and a depthwise convolution of the sum: parameters and
// launchers.
//
//   z[i, j] = x[i, j] + g[i / r, j / r]                    zero outside the map
//   y[i, j] = bias + sum_uv weight[u, v] z[i + u - k / 2, j + v - k / 2]
//
// for every image and channel. Backward, with the gradient dy of y and dz[i, j] = sum_uv
// weight[u, v] dy[i - u + k / 2, j - v + k / 2]:
//
//   dx = dz                                    dweight[u, v] = sum of dy z shifted by (u, v)
//   dg = sum of dz over a region's pixels      dbias = sum of dy
//
// z is computed again wherever it is needed, and never stored.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct RegionMixParams {
  DType dtype;            // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;     // none is zero when a launcher is called
  int64_t region;         // r
  int64_t rows, columns;  // of regions
  int32_t side;           // k: 1, 3, 5 or 7

  InputMap x, g;       // (B, H, W, C) and (B, rows, columns, C)
  const void* weight;  // (k, k, C) contiguous
  const void* bias;    // (C,) contiguous, or null
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_x, grad_g;
  void* grad_weight;  // (k, k, C)
  void* grad_bias;    // (C,)
  void* workspace;    // partial sums of the parameters' gradients
};

// CPU kernels. A launch is cut into jobs: walks along rows, and runs of rows of regions.
struct RegionMixCpu {
  int64_t (*forward_jobs)(const RegionMixParams&);
  int64_t (*backward_jobs)(const RegionMixParams&);
  int64_t (*workspace_bytes)(const RegionMixParams&);  // of the backward
  void (*forward)(const RegionMixParams&, int64_t begin, int64_t end);
  void (*backward)(const RegionMixParams&, int64_t begin, int64_t end);
  void (*reduce)(const RegionMixParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid

extern "C" {
int64_t hk_region_mix_workspace_bytes(const hybrid::RegionMixParams*);
int hk_region_mix_forward(const hybrid::RegionMixParams*, void* stream);
int hk_region_mix_backward(const hybrid::RegionMixParams*, void* stream);
}
