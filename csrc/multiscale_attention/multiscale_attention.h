// Softmax attention over several segments of keys and values: parameters and launchers. Plain C++.
//
//   s_nm = scale <q_n, k_m>     over the keys m of all segments: one softmax, nothing concatenated
//   out_n = sum_m p_nm v_m      p_nm = exp(s_nm - lse_n)     lse_n = log sum_m exp(s_nm)
//
// Backward, with the gradient g of out and D_n = <g_n, out_n>:
//
//   dv_m = sum_n p_nm g_n       ds_nm = p_nm (<g_n, v_m> - D_n)
//   dk_m = scale sum_n ds_nm q_n        dq_n = scale sum_m ds_nm k_m
#pragma once

#include "../common/attention/tokens.h"
#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

constexpr int kMaxSegments = 3;

struct AttentionSegment {
  int64_t M;  // keys, may be zero
  AttentionTokens k, v;
  void* grad_k;  // (B, M, h, d) contiguous; null when not asked for
  void* grad_v;  // (B, M, h, dv) contiguous; null when not asked for
};

struct MultiscaleAttentionParams {
  DType dtype;       // of q, k, v, out and their gradients
  int64_t B, N;      // images, queries; neither is zero when a launcher is called
  int32_t h, d, dv;  // heads, width of queries and keys, width of values
  int32_t segments;  // 1 to kMaxSegments
  int64_t M;         // keys of all segments, at least one
  double scale;

  AttentionTokens q;
  AttentionSegment segment[kMaxSegments];
  void* out;  // (B, N, h, dv) contiguous; read only in the backward
  void* lse;  // (B, h, N) contiguous float32 (float64); natural logarithm

  // Backward only.
  AttentionTokens grad_out;  // (B, N, h, dv)
  void* grad_q;              // (B, N, h, d) contiguous; null when not asked for
  void* workspace;
};

// CPU. A launch is cut into chunks by shape alone, never by the number of threads, so that no bit
// of a result depends on them. One table per instruction set.
struct MultiscaleAttentionCpu {
  int64_t (*forward_chunks)(const MultiscaleAttentionParams&);
  void (*forward)(const MultiscaleAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  int64_t (*backward_chunks)(const MultiscaleAttentionParams&);
  int64_t (*workspace_bytes)(const MultiscaleAttentionParams&);  // of the backward
  void (*backward)(const MultiscaleAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  // After the backward, for (image, head) pairs [begin, end): workspace -> grad_q. Only where
  // workspace_bytes is not zero.
  void (*reduce)(const MultiscaleAttentionParams&, int64_t begin, int64_t end);
  // Whether one head of an image stays in the cache while it is worked on.
  bool (*fits_cache)(int64_t queries, int64_t keys);
};

}  // namespace hybrid

// CUDA launchers: 0, or a cudaError_t. `stream` is a cudaStream_t.
extern "C" {
int64_t hk_multiscale_attention_workspace_bytes(const hybrid::MultiscaleAttentionParams*);
int hk_multiscale_attention_forward(const hybrid::MultiscaleAttentionParams*, void* stream);
int hk_multiscale_attention_backward(const hybrid::MultiscaleAttentionParams*, void* stream);
}
