// Attention whose heads are mixed before and after the softmax: parameters and kernels. Plain C++.
//
//   S_j = scale q_j k_j^T      Z_g = sum_j w1[g, j] S_j + b1[g]      P_g = softmax of Z_g over keys
//   A_j = sum_g w2[j, g] P_g + b2[j]      out_j = A_j v_j            lse_g = log sum exp Z_g
//
// with heads j and mixed heads g. The values are summed after heads have been mixed again, so no
// running maximum serves: weights must be normalised first. Backward, with the gradient do of out;
// the weights are computed again:
//
//   dv_j = A_j^T do_j        dA_j = do_j v_j^T        dP_g = sum_j w2[j, g] dA_j
//   dZ_g = P_g (dP_g - D_g)  D_g = sum over keys of P_g dP_g    dS_j = sum_g w1[g, j] dZ_g
//   dq_j = scale dS_j k_j    dk_j = scale dS_j^T q_j
//   dw1[g, j] = sum dZ_g S_j     dw2[j, g] = sum dA_j P_g     db2[j] = sum dA_j     db1 = 0
#pragma once

#include "../common/attention/tokens.h"
#include "../common/cpu_isa.h"

namespace hybrid {

struct MixedHeadAttentionParams {
  DType dtype;
  int64_t B, M;     // images and tokens; none is zero in a launch
  int64_t h, d, g;  // heads, their width, mixed heads
  double scale;

  AttentionTokens q, k, v;        // (B, M, h, d)
  const void *w1, *b1, *w2, *b2;  // (g, h), (g,), (h, g), (h,), contiguous
  void* out;                      // (B, M, h, d) contiguous
  void* lse;                      // (B, g, M) contiguous, float (double)

  // Backward only. Gradients are contiguous, and null when not asked for.
  AttentionTokens grad;  // of out
  void *grad_q, *grad_k, *grad_v;
  void *grad_w1, *grad_w2, *grad_b2;
  void* workspace;  // partial sums of chunks
};

// Chunks of an image: pieces of its queries, at most 256 of them, and where there are few images
// enough pieces of no fewer than 32 for some threads. The backward sums keys and values by piece.
inline int64_t query_pieces(const MixedHeadAttentionParams& p) {
  const int64_t least = ceil_div<int64_t>(p.M, 256), most = ceil_div<int64_t>(p.M, 32);
  const int64_t wanted = ceil_div<int64_t>(4, p.B);
  return wanted < least ? least : wanted < most ? wanted : most;
}

// CPU kernels, on B * query_pieces chunks. One table per instruction set.
struct MixedHeadAttentionCpu {
  int64_t (*workspace_bytes)(const MixedHeadAttentionParams&);  // of the backward
  void (*forward)(const MixedHeadAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  void (*backward)(const MixedHeadAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward: workspace -> gradients of keys and values of images [begin, end).
  void (*reduce_tokens)(const MixedHeadAttentionParams&, int64_t begin, int64_t end);
  void (*reduce_layers)(const MixedHeadAttentionParams&);
};

}  // namespace hybrid
