// Pixels read a few tokens of their image: parameters and kernels. Plain C++.
//
//   z_i = y_i + sum_m p_im v_m      p_im = softmax over the tokens m of scale <q_i, k_m>
//
// head by head. Backward, with the gradient g of z; the weights are computed again:
//
//   dv_m = sum_i p_im g_i         ds_im = p_im (<g_i, v_m> - sum_u p_iu <g_i, v_u>)
//   dk_m = scale sum_i ds_im q_i        dq_i = scale sum_m ds_im k_m       dy = g
#pragma once

#include "../common/attention/tokens.h"
#include "../common/cpu_isa.h"

namespace hybrid {

struct TokenFusionParams {
  DType dtype;
  int64_t B, N, M;  // images, pixels, tokens; none is zero in a launch
  int64_t h, d;     // heads and their width
  double scale;

  AttentionTokens q;  // (B, N, h, d)
  const void* kv;     // (B, M, 2, h, d), last stride 1
  int64_t kv_stride[4];
  AttentionTokens y;  // (B, N, h, d)
  void* out;          // (B, N, h, d) contiguous

  // Backward only. Gradients are contiguous, and null when not asked for.
  AttentionTokens grad;  // of z, (B, N, h, d)
  void* grad_q;
  void* grad_kv;
  void* workspace;  // partial sums of grad_kv, per chunk
};

// Chunks of an image: pieces of pixels, each many times the tokens, whose sums it keeps.
inline int64_t fusion_pieces(const TokenFusionParams& p) {
  const int64_t pixels = p.M > 64 ? 4 * p.M : 256;
  return ceil_div(p.N, pixels);
}

// CPU kernels, on B * fusion_pieces chunks. One table per instruction set.
struct TokenFusionCpu {
  int64_t (*workspace_bytes)(const TokenFusionParams&);  // of the backward
  void (*forward)(const TokenFusionParams&, int64_t chunk_begin, int64_t chunk_end);
  void (*backward)(const TokenFusionParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward, where grad_kv is asked for, for images [begin, end): workspace -> grad_kv.
  void (*reduce)(const TokenFusionParams&, int64_t image_begin, int64_t image_end);
};

}  // namespace hybrid
