// Gated fusion of branches: parameters and kernels.
//
//   l_k = weight_k x + bias_k          g = softmax of l over the branches k
//   y   = [x +] sum_k g_k scale_k m_k
//
// for every pixel and channel by itself; g_k = 1/n without weight and bias. Backward, with the
// gradient dy of y, t_k = dy scale_k m_k and dl_k = g_k (t_k - sum_j g_j t_j):
//
//   dm_k = g_k scale_k dy              dweight_k = sum of dl_k x over images and pixels
//   dx   = [dy +] sum_k weight_k dl_k  dbias_k   = sum of dl_k
//                                      dscale_k  = sum of dy g_k m_k over an image's pixels
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

// A map (B, H, W, C), last stride 1.
struct FuseMap {
  const void* data;
  int64_t stride[3];  // in elements, of images, rows and pixels
};

struct GatedFuseParams {
  DType dtype;         // of maps; parameters are float32 (float64 beside float64)
  int64_t B, H, W, C;  // none is zero when a launcher is called
  int32_t n;           // branches, 1 to kMaxBranches
  bool residual;

  FuseMap x, m[kMaxBranches];
  const void* weight;      // (n, C) contiguous; null for the mean, and for a single branch
  const void* bias;        // (n, C) contiguous, null with weight
  const void* scale;       // (B, n, scale_channels) contiguous; or null
  int64_t scale_channels;  // C or 1
  void* y;                 // (B, H, W, C) contiguous

  // Backward only. Gradients are contiguous, and null when not asked for.
  FuseMap grad;  // of y
  void* grad_x;
  void* grad_m[kMaxBranches];
  void* grad_weight;
  void* grad_bias;
  void* grad_scale;
  void* workspace;  // partial sums of the parameters' gradients, per chunk
};

// CPU kernels. A launch is cut into chunks() pieces of pixels; the cut depends on the shape alone,
// never on the number of threads, so that the partial sums, and with them every bit of the
// parameters' gradients, do not either.
struct GatedFuseCpu {
  int64_t (*chunks)(const GatedFuseParams&);
  int64_t (*workspace_bytes)(const GatedFuseParams&);  // of the backward; 0 without parameters
  void (*forward)(const GatedFuseParams&, int64_t chunk_begin, int64_t chunk_end);
  void (*backward)(const GatedFuseParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward: workspace -> gradients of the parameters.
  void (*reduce)(const GatedFuseParams&);
};

}  // namespace hybrid
