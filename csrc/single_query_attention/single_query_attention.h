// Attention of a few queries over very many keys: parameters and launchers. Plain C++.
//
//   s_gi = scale <q_g, k_i>     over the tokens i of an image that are not excluded
//   out_g = sum_i p_gi v_i      p_gi = exp(s_gi - lse_g)     lse_g = log sum_i exp(s_gi)
//
// Backward, with the gradient u of out and D_g = <u_g, out_g>:
//
//   dv_i = sum_g p_gi u_g           ds_gi = p_gi (<u_g, v_i> - D_g)
//   dk_i = scale sum_g ds_gi q_g    dq_g = scale sum_i ds_gi k_i, over images too if they share q
//
// The tokens of an image are cut into blocks. Every block leaves partial results in the workspace,
// and a second pass merges them in ascending order.
#pragma once

#include "../common/attention/tokens.h"
#include "../common/cpu_isa.h"

namespace hybrid {

constexpr int kMaxQueries = 16;
constexpr int kTokenBlock = 128;

struct SingleQueryAttentionParams {
  DType dtype;           // of query, k, v, out and their gradients
  int64_t B, N;          // images, tokens; neither is zero when a launcher is called
  int32_t G, h;          // queries, 1 to kMaxQueries; heads
  int32_t d, dv;         // width of queries and keys, width of values
  bool shared;           // all images have the same queries
  bool values_are_keys;  // v is k, and grad_k also takes what belongs to grad_v, which is null
  double scale;

  AttentionTokens query;   // (B, G, h, d); image stride 0 if shared
  AttentionTokens k, v;    // (B, N, h, d), (B, N, h, dv)
  const int64_t* exclude;  // (B, excluded) contiguous, or null
  int64_t excluded;
  void* out;  // (B, G, h, dv) contiguous; read only in the backward
  void* lse;  // (B, h, G) contiguous float32 (float64); natural logarithm

  // Backward only; gradients are contiguous, and null when not asked for.
  AttentionTokens grad_out;  // (B, G, h, dv)
  void* grad_query;          // (B, G, h, d), or (G, h, d) if shared
  void* grad_k;              // (B, N, h, d)
  void* grad_v;              // (B, N, h, dv)
  void* workspace;
};

inline int64_t token_blocks(const SingleQueryAttentionParams& p) {
  return ceil_div<int64_t>(p.N, kTokenBlock);
}

// CPU. A launch is cut into blocks of tokens, B * token_blocks of them, by shape alone. One table
// per instruction set.
struct SingleQueryAttentionCpu {
  int64_t (*forward_workspace)(const SingleQueryAttentionParams&);   // bytes
  int64_t (*backward_workspace)(const SingleQueryAttentionParams&);  // bytes
  void (*forward)(const SingleQueryAttentionParams&, int64_t block_begin, int64_t block_end);
  void (*merge)(const SingleQueryAttentionParams&, int64_t image_begin, int64_t image_end);
  void (*backward)(const SingleQueryAttentionParams&, int64_t block_begin, int64_t block_end);
  void (*merge_grad)(const SingleQueryAttentionParams&);  // workspace -> grad_query
};

}  // namespace hybrid

// CUDA launchers: 0, or a cudaError_t. `stream` is a cudaStream_t. Workspaces in bytes.
extern "C" {
int64_t hk_single_query_attention_forward_workspace(const hybrid::SingleQueryAttentionParams*);
int64_t hk_single_query_attention_backward_workspace(const hybrid::SingleQueryAttentionParams*);
int hk_single_query_attention_forward(const hybrid::SingleQueryAttentionParams*, void* stream);
int hk_single_query_attention_backward(const hybrid::SingleQueryAttentionParams*, void* stream);
}
