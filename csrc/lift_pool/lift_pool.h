// Depthwise lifting convolution and maximum over the group: parameters and kernels.
//
// Element e = 4 m + s of the group, p4 (m = 0) or p4m, flips the columns of a 3x3 kernel if m, then
// turns it counter-clockwise by s * 90 degrees: act_e(w)[t] = w[source_e(t)], t counting the nine
// taps row by row. For every channel by itself, x being zero outside the map:
//
//   y[i] = max over e of sum over t of act_e(w)[t] x[i + t]       the first of equal values counts
//
// Backward, with e the winner of output i, which is found again: dy and x are read for dweight
// anyway, a stored map of winners would have to be written and read on top.
//
//   dx[i + t]             += dy[i] act_e(w)[t]
//   dweight[source_e(t)]  += dy[i] x[i + t]
//
// The mean over the group is dwconv_act with the mean of a kernel's orientations.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct LiftPoolParams {
  DType dtype;         // of maps; the parameter is float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called
  bool mirrors;        // p4m

  InputMap x;
  const void* weight;  // (3, 3, C) contiguous
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_x;
  void* grad_weight;  // (3, 3, C)
  void* workspace;    // partial sums of grad_weight
};

// CPU kernels. A launch is cut into jobs(): csrc/common/stencil/cut.h.
struct LiftPoolCpu {
  int64_t (*jobs)(const LiftPoolParams&);
  int64_t (*workspace_bytes)(const LiftPoolParams&);  // of the backward
  void (*forward)(const LiftPoolParams&, int64_t begin, int64_t end);
  void (*backward)(const LiftPoolParams&, int64_t begin, int64_t end);
  void (*reduce)(const LiftPoolParams&);  // after the backward: workspace -> gradient
};

}  // namespace hybrid
