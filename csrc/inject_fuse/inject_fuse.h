// Coarse semantics injected into a finer map: parameters and kernels.
//
//   y = local up(hsig(logit)) + up(offset)          hsig(t) = min(max(t + 3, 0), 6) / 6
//
// with up bilinear (align_corners=False): element i of Out reads s = max(0, (i + 1/2) In / Out -
// 1/2), elements p = floor(s) and min(p + 1, In - 1) of In with weights 1 - (s - p) and s - p.
// Backward, with the gradient dy:
//
//   dlocal = dy up(hsig(logit))    dlogit = up^T(dy local) / 6 where -3 < logit < 3
//   doffset = up^T(dy)
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct InjectFuseParams {
  DType dtype;
  int64_t B, C;            // none is zero when a kernel is called
  int64_t H, W;            // of the coarse maps
  int64_t fine_H, fine_W;  // of the local map

  InputMap local, logit, offset;
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_local, grad_logit, grad_offset;
};

// CPU kernels. Jobs are bands of rows: of y in the forward, of the coarse maps in the backward.
struct InjectFuseCpu {
  int64_t (*forward_jobs)(const InjectFuseParams&);
  int64_t (*backward_jobs)(const InjectFuseParams&);
  void (*forward)(const InjectFuseParams&, int64_t begin, int64_t end);
  void (*backward)(const InjectFuseParams&, int64_t begin, int64_t end);
};

}  // namespace hybrid
