// The two coarser scales of multi-scale attention: parameters and kernels.
//
//   y_0[o, p] = sum_uv weight_0[u, v] n[2 o + u - 1, 2 p + v - 1]       3x3 taps, stride 2
//   y_1[o, p] = sum_uv weight_1[u, v] n[3 o + u - 2, 3 p + v - 2]       5x5 taps, stride 3
//
// for every channel by itself. n = scale x + shift, the folded norm, on the pixels of the map, and
// zero outside it. Backward, with the gradients dy_k:
//
//   dn[i, j]        = sum of weight_k[u, v] dy_k[o, p] over all k, u, v, o, p that read n[i, j]
//   dx              = scale dn      dscale = sum dn x      dshift = sum dn
//   dweight_k[u, v] = sum of dy_k[o, p] times what the tap reads
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

constexpr int kScales = 2;
constexpr int64_t kScaleSide[kScales] = {3, 5};
constexpr int64_t kScaleStride[kScales] = {2, 3};

struct DownsamplePairParams {
  DType dtype;         // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called

  InputMap x;
  const void* weight[kScales];  // (3, 3, C) and (5, 5, C) contiguous
  const void* scale;            // (C,) contiguous, or null: 1
  const void* shift;            // (C,) contiguous, or null: 0
  OutputMap y[kScales];

  // Backward only. What is not asked for is null.
  InputMap grad[kScales];  // of y
  OutputMap grad_x;
  void* grad_weight[kScales];
  void* grad_scale;  // (C,)
  void* grad_shift;  // (C,)
  void* workspace;   // partial sums of the parameters' gradients

  int64_t rows(int k) const { return ceil_div(H, kScaleStride[k]); }
  int64_t columns(int k) const { return ceil_div(W, kScaleStride[k]); }
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h.
struct DownsamplePairCpu {
  int64_t (*jobs)(const DownsamplePairParams&);
  int64_t (*workspace_bytes)(const DownsamplePairParams&);  // of the backward
  void (*forward)(const DownsamplePairParams&, int64_t begin, int64_t end);
  void (*backward)(const DownsamplePairParams&, int64_t begin, int64_t end);
  void (*reduce)(const DownsamplePairParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid
