// Pixels read pooled tokens at two scales: parameters and kernels. Plain C++.
//
//   y = attention(q3, kv3) + attention(q5, kv5)      q3 = DW3x3(x) + b3      q5 = DW5x5(x) + b5
//   attention(q, kv)_i = sum_g p_ig v_g              p_ig = softmax over g of scale <q_i, k_g>
//
// head by head, with the G tokens of the pixel's image. Backward, with the gradient dy of y, of
// each branch; queries and weights are computed again:
//
//   ds_ig = p_ig (<dy_i, v_g> - sum_u p_iu <dy_i, v_u>)      dq_i = scale sum_g ds_ig k_g
//   dk_g = scale sum_i ds_ig q_i                             dv_g = sum_i p_ig dy_i
//   dx = both stencils over dq3 and dq5, their taps turned round
//   dw[u, v] = sum of dq[i, j] times what tap (u, v) sees of x        db = sum of dq
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

// Taps and tokens of one branch, or the places of their gradients.
struct PropagateBranch {
  const void* weight;  // (side, side, C) contiguous
  const void* bias;    // (C,) contiguous
  const void* kv;      // (B, G, 2, h, d), last stride 1
  int64_t kv_stride[4];

  void* grad_weight;  // contiguous like what they belong to, null when not asked for
  void* grad_bias;
  void* grad_kv;
};

struct GroupPropagateParams {
  DType dtype;         // of maps and tokens; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called
  int64_t G, h, d;     // tokens of an image, heads and their width
  double scale;

  InputMap x;
  PropagateBranch branch[2];  // 3x3 and 5x5
  OutputMap y;

  // Backward only.
  InputMap grad;  // of y
  OutputMap grad_x;
  void* workspace;  // partial sums of parameters and tokens
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h.
struct GroupPropagateCpu {
  int64_t (*jobs)(const GroupPropagateParams&);
  int64_t (*workspace_bytes)(const GroupPropagateParams&);  // of the backward
  void (*forward)(const GroupPropagateParams&, int64_t begin, int64_t end);
  void (*backward)(const GroupPropagateParams&, int64_t begin, int64_t end);
  void (*reduce)(const GroupPropagateParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid
