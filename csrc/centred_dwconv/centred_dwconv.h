// Depthwise 3x3 convolution of a map minus its mean: parameters and kernels.
//
//   d[i, j] = x[i, j] - mean(x)        y[i, j] = sum_uv weight[u, v] d[i + u - 1, j + v - 1]
//
// for every image and channel by itself, d (not x) being zero outside the map. Backward, with the
// gradient dy of y:
//
//   dd = the same stencil over dy, its taps turned round        dx = dd - mean(dd)
//   dweight[u, v] = sum of dy[i, j] d[i + u - 1, j + v - 1] over images and pixels
//
// Both means are sums over a map that is read once before the stencil reads it again. That of dd
// needs no stencil: tap (u, v) has dy[i, j] where (i + u - 1, j + v - 1) lies in the map, so that
// it gives weight[u, v] times the sum of dy without the row or column that would fall outside.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct CentredDwconvParams {
  DType dtype;         // of maps; parameters and means are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called

  InputMap x;
  const void* weight;  // (3, 3, C) contiguous
  OutputMap y;
  void* mean;  // (B, C) contiguous, of x: the forward writes it, the backward reads it

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_x;
  void* grad_weight;  // (3, 3, C)

  void* workspace;  // sums, and which images are done
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h. All of them are started,
// then all are finished: rows.h.
struct CentredDwconvCpu {
  int64_t (*jobs)(const CentredDwconvParams&);
  int64_t (*workspace_bytes)(const CentredDwconvParams&);
  void (*forward_start)(const CentredDwconvParams&, int64_t begin, int64_t end);
  void (*forward_finish)(const CentredDwconvParams&, int64_t begin, int64_t end);
  void (*backward_start)(const CentredDwconvParams&, int64_t begin, int64_t end);
  void (*backward_finish)(const CentredDwconvParams&, int64_t begin, int64_t end);
  void (*reduce)(const CentredDwconvParams&);  // after the backward: workspace -> dweight
};

}  // namespace hybrid
