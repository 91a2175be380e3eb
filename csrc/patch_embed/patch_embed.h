// Patch embedding by pooling: parameters and kernels. Plain C++.
//
// Patch t of an axis is pixels [t p, min((t + 1) p, size)). Patches are pooled, and channels mixed:
//
//   z[t] = weight pool_t(x)      pool: the largest pixel, or the mean of those that exist
//
// Of equal pixels the first one counts, row by row, and NaN is larger than every number. Backward,
// with g = weight^T dz, is a gather, because patches are disjoint:
//
//   dx = g[t] where index[t] names the pixel, else 0; or g[t] / (pixels of t)
//   dweight = sum of dz pool(x)^T
//
// The forward keeps pool(x), 1 / p^2 of the map, so that the backward does not read x again.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/stencil/map.h"

namespace hybrid {

constexpr int64_t kMaxPatch = 16;  // a pixel's place in its patch is a byte

struct PatchEmbedParams {
  DType dtype;
  int64_t B, H, W, C;     // none is zero when a launcher is called
  int64_t rows, columns;  // of patches
  int64_t width;          // channels of z; not zero either
  int64_t patch;
  bool is_max;

  const void* weight;  // (width, C) contiguous

  // (B, rows, columns, C) contiguous: written by the forward, read by the backward.
  void* pooled;
  uint8_t* index;  // of the largest pixels; or null

  // Forward only.
  InputMap x;  // (B, H, W, C)
  void* z;     // (B, rows, columns, width) contiguous

  // Backward only; gradients are contiguous, and null when not asked for.
  InputMap grad;  // of z
  void* grad_x;
  void* grad_weight;
  void* workspace;  // partial sums of grad_weight, per job
};

// CPU. A launch is cut into jobs, runs of rows of patches, by shape alone. One table per
// instruction set.
struct PatchEmbedCpu {
  int64_t (*jobs)(const PatchEmbedParams&);
  int64_t (*workspace_bytes)(const PatchEmbedParams&);  // of the backward
  void (*forward)(const PatchEmbedParams&, int64_t begin, int64_t end);
  void (*backward)(const PatchEmbedParams&, int64_t begin, int64_t end);
  // After the backward: workspace -> gradient of the weight.
  void (*reduce)(const PatchEmbedParams&);
};

}  // namespace hybrid
