// Parallel convolution path of attention: parameters and kernels.
//
//   z[i, j] = out[i, j] + bias + sum_uv weight[u, v] h[i + u - 1, j + v - 1]     h = hardswish(v)
//
// for every channel by itself, h being zero outside the map. The result is z, or with the folded
// norm that follows t = scale z + shift, y = hardswish(t). Backward, with the gradient dy, z
// computed again:
//
//   dt = dy hardswish'(t)    dscale = sum dt z    dshift = sum dt    dz = scale dt
//
// or dz = dy without a norm, and
//
//   dout = dz        dv = hardswish'(v) times the same stencil over dz, its taps turned round
//   dweight[u, v] = sum of dz[i, j] h[i + u - 1, j + v - 1] over images and pixels
//   dbias         = sum of dz
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct ValueConvParams {
  DType dtype;         // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called

  InputMap out, v;
  const void* weight;  // (3, 3, C) contiguous
  const void* bias;    // (C,) contiguous
  const void* scale;   // (C,) contiguous, or null: without a norm
  const void* shift;   // the same
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_out, grad_v;
  void* grad_weight;  // (3, 3, C)
  void* grad_bias;    // (C,)
  void* grad_scale;   // (C,)
  void* grad_shift;   // (C,)
  void* workspace;    // partial sums of the parameters' gradients
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h.
struct ValueConvCpu {
  int64_t (*jobs)(const ValueConvParams&);
  int64_t (*workspace_bytes)(const ValueConvParams&);  // of the backward
  void (*forward)(const ValueConvParams&, int64_t begin, int64_t end);
  void (*backward)(const ValueConvParams&, int64_t begin, int64_t end);
  void (*reduce)(const ValueConvParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid
