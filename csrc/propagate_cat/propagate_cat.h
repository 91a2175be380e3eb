// Maps side by side on channels, some of which are still tokens: parameters and kernels.
//
// A part of y is a map, copied, or tokens z (B, rows, columns, C) spread by a kernel (p, p, C):
//
//   y[i, j] = z[i / p, j / p] kernel[i % p, j % p]        0 where there is no token
//
// Backward, with dy the part's gradient, over the pixels of token (t, s) that the map has:
//
//   dz[t, s]      = sum over (a, b) of dy[t p + a, s p + b] kernel[a, b]
//   dkernel[a, b] = sum over images and tokens of dy[t p + a, s p + b] z[t, s]
//
// A map is tokens of one pixel with a kernel of ones, and has none.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

constexpr int kMaxParts = 8;

struct PropagatePart {
  InputMap z;
  int64_t rows, columns, p, C;
  int64_t first;       // channel in y
  const void* kernel;  // (p, p, C) contiguous, or null: a map

  // Backward only. What is not asked for is null.
  OutputMap grad_z;
  void* grad_kernel;  // (p, p, C)
  void* workspace;    // partial sums of the kernel's gradient
};

struct PropagateCatParams {
  DType dtype;         // of maps; kernels are float32 (float64 beside float64)
  int64_t B, H, W, C;  // of y; none is zero when a kernel is called
  int32_t parts;
  PropagatePart part[kMaxParts];
  OutputMap y;
  InputMap grad;  // of y
};

// CPU kernels. The forward is cut into rows of y, image by image, the backward of a part into
// runs of rows of its tokens: csrc/common/stencil/region_rows.h.
struct PropagateCatCpu {
  void (*forward)(const PropagateCatParams&, int64_t row_begin, int64_t row_end);
  int64_t (*runs)(const PropagateCatParams&, const PropagatePart&);
  int64_t (*workspace_bytes)(const PropagateCatParams&, const PropagatePart&);
  void (*backward)(const PropagateCatParams&, const PropagatePart&, int64_t begin, int64_t end);
  // After the backward: workspace -> gradient of the kernel.
  void (*reduce)(const PropagateCatParams&, const PropagatePart&);
};

}  // namespace hybrid
