// Depthwise 3x3 convolution with bias and activation: parameters and kernels.
//
//   t[i, j] = bias + sum_uv weight[u, v] x[i + u - 1, j + v - 1]        y = act(t)
//
// for every channel by itself, x being zero outside the map. Backward, with the gradient dy of y
// and dt = dy act'(t), t computed again:
//
//   dx = the same stencil over dt, its taps turned round
//   dweight[u, v] = sum of dt[i, j] x[i + u - 1, j + v - 1] over images and pixels
//   dbias         = sum of dt
#pragma once

#include "../common/activation.h"
#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct DwconvActParams {
  DType dtype;         // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called
  Activation act;

  InputMap x;
  const void* weight;  // (3, 3, C) contiguous
  const void* bias;    // (C,) contiguous, or null
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_x;
  void* grad_weight;  // (3, 3, C)
  void* grad_bias;    // (C,)
  void* workspace;    // partial sums of the parameters' gradients
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h; a forward that walks, into
// walks: csrc/common/stencil/walk_map.h.
struct DwconvActCpu {
  int64_t (*forward_jobs)(const DwconvActParams&);
  int64_t (*jobs)(const DwconvActParams&);
  int64_t (*workspace_bytes)(const DwconvActParams&);  // of the backward
  void (*forward)(const DwconvActParams&, int64_t begin, int64_t end);
  void (*backward)(const DwconvActParams&, int64_t begin, int64_t end);
  void (*reduce)(const DwconvActParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid
