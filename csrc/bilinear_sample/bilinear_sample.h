// Bilinear samples of a map at half its resolution, at learned offsets: parameters and kernels.
//
//   y[i, j] = x at row 2 i + 0.5 + dy[i, j] and column 2 j + 0.5 + dx[i, j], clamped to the map
//
// interpolated between the four pixels around, for all channels alike; pixel (0, 0) has its centre
// at (0, 0). Backward, with the gradient dy of y: a pixel receives dy times its weight from every
// point that it is a corner of; an offset receives the slope along its axis times dy, summed over
// channels, and nothing where its coordinate was clamped.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct BilinearSampleParams {
  DType dtype;         // of maps; offsets are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a kernel is called
  int64_t out_H, out_W;

  InputMap x;
  const void* offset;  // (B, out_H, out_W, 2) contiguous: along columns, along rows
  OutputMap y;

  // Backward only. What is not asked for is null.
  InputMap grad;  // of y
  OutputMap grad_x;
  void* grad_offset;  // (B, out_H, out_W, 2)
};

// CPU kernels. Outputs and gradients of offsets are cut into B * out_H rows, the gradient of the
// map into images and blocks of channels: within one, contributions are added in a fixed order.
struct BilinearSampleCpu {
  void (*forward)(const BilinearSampleParams&, int64_t row_begin, int64_t row_end);
  void (*backward_offset)(const BilinearSampleParams&, int64_t row_begin, int64_t row_end);
  int64_t (*blocks)(const BilinearSampleParams&);
  void (*backward_map)(const BilinearSampleParams&, int64_t block_begin, int64_t block_end);
};

}  // namespace hybrid
