// Foreground and background tokens back in the order of the image: parameters and kernels. Plain
// C++.
//
//   out[index[j]] = foreground[j]       out_i = x_i + update for every other token i
//
// Backward, with the gradient g of out:
//
//   dforeground[j] = g[index[j]]     dx_i = g_i on the background, 0 on the foreground
//   dupdate = the sum of dx_i over the tokens of an image
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

// (B, tokens, C), last stride 1.
struct TokenMap {
  const void* data;
  int64_t stride[2];  // in elements, of images and tokens
};

struct PartialCombineParams {
  DType dtype;
  int64_t B, N, C, n;  // images, tokens, channels, foreground tokens; none is zero in a launch

  TokenMap x, foreground;
  const void* update;     // (B, C) contiguous
  const int32_t* places;  // (B, N): row of a token in foreground, or -1
  void* out;              // (B, N, C) contiguous

  // Backward only. Gradients are contiguous, and null when not asked for.
  TokenMap grad;  // of out
  void* grad_x;
  void* grad_update;
  void* grad_foreground;
  void* workspace;  // partial sums of grad_update, per chunk
};

constexpr int64_t kCombineTokens = 256;  // of a chunk

// Chunks of an image.
inline int64_t combine_pieces(const PartialCombineParams& p) {
  return ceil_div(p.N, kCombineTokens);
}

// CPU kernels, on B * combine_pieces chunks of tokens. One table per instruction set.
struct PartialCombineCpu {
  int64_t (*workspace_bytes)(const PartialCombineParams&);  // of the backward
  void (*forward)(const PartialCombineParams&, int64_t chunk_begin, int64_t chunk_end);
  void (*backward)(const PartialCombineParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward, where grad_update is asked for: workspace -> grad_update.
  void (*reduce)(const PartialCombineParams&);
};

}  // namespace hybrid
