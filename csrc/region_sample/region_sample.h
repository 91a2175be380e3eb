// Learned down-sampling of regions to one token each: parameters and launchers.
//
//   s[p, q] = bias + sum_uv weight[u, v] x[p r + u, q r + v]        x being zero outside the map
//
// for every image and channel. Backward, with the gradient ds of s: every pixel lies in exactly one
// region, so that
//
//   dx[i, j] = weight[i mod r, j mod r] ds[i / r, j / r] [+ dx_init[i, j]]
//   dweight[u, v] = sum of ds x over images and regions             dbias = sum of ds
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

struct RegionSampleParams {
  DType dtype;            // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;     // none is zero when a launcher is called
  int64_t region;         // r
  int64_t rows, columns;  // of regions

  InputMap x;          // (B, H, W, C)
  const void* weight;  // (r, r, C) contiguous
  const void* bias;    // (C,) contiguous, or null
  OutputMap s;         // (B, rows, columns, C)

  // Backward only. What is not asked for is null.
  InputMap grad;     // of s
  InputMap dx_init;  // (B, H, W, C), or null: what is added to the gradient of x
  OutputMap grad_x;
  void* grad_weight;  // (r, r, C)
  void* grad_bias;    // (C,)
  void* workspace;    // partial sums of the parameters' gradients
};

// CPU kernels. A launch is cut into jobs: rows of regions, and runs of them.
struct RegionSampleCpu {
  int64_t (*forward_jobs)(const RegionSampleParams&);
  int64_t (*backward_jobs)(const RegionSampleParams&);
  int64_t (*workspace_bytes)(const RegionSampleParams&);  // of the backward
  void (*forward)(const RegionSampleParams&, int64_t begin, int64_t end);
  void (*backward)(const RegionSampleParams&, int64_t begin, int64_t end);
  void (*reduce)(const RegionSampleParams&);  // after the backward: workspace -> gradients
};

}  // namespace hybrid

extern "C" {
int64_t hk_region_sample_workspace_bytes(const hybrid::RegionSampleParams*);
int hk_region_sample_forward(const hybrid::RegionSampleParams*, void* stream);
int hk_region_sample_backward(const hybrid::RegionSampleParams*, void* stream);
}
