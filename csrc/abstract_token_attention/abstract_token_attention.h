// Attention within windows that share one abstract token: parameters and launchers. Plain C++.
//
// Window (u, v) holds the pixels (u P + a, v P + b) with a, b < P. Its rows are the token, row 0,
// and its pixels, row 1 + a P + b; every row attends to all of them:
//
//   s_rs = scale <q_r, k_s>      out_r = sum_s p_rs v_s
//   p_rs = exp(s_rs - lse_r)     lse_r = log sum_s exp(s_rs)
//
// What lies outside the map is no query; it is a key only with pad_kv. Backward, with the gradient
// g of out and D_r = <g_r, out_r>:
//
//   dv_s = sum_r p_rs g_r        ds_rs = p_rs (<g_r, v_s> - D_r)
//   dk_s = scale sum_r ds_rs q_r        dq_r = scale sum_s ds_rs k_s
//
// The gradients of the token and of pad_kv are sums over all windows, in two stages of fixed order.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

struct AbstractTokenAttentionParams {
  DType dtype;      // of everything but the log-sum-exp and the gradients of token and pad_kv
  int64_t B, H, W;  // images, rows, columns; none is zero when a launcher is called
  int32_t h, d, P;  // heads, head width, window side
  double scale;

  const void* qkv;        // (B, H, W, 3, h, d), last stride 1
  int64_t qkv_stride[5];  // in elements, of the leading dimensions; so are the others
  const void* token;      // (3, h, d) contiguous
  const void* pad_kv;     // (2, h, d) contiguous; or null
  void* out;              // (B, H, W, h, d) contiguous; read only in the backward
  void* summary;          // (B, windows, h, d) contiguous; read only in the backward
  void* lse;  // (B, windows, h, 1 + P^2) contiguous float32 (float64); 0 outside the map

  // Backward only; gradients are contiguous, and null when not asked for.
  const void* grad_out;  // (B, H, W, h, d), last stride 1
  int64_t grad_out_stride[4];
  const void* grad_summary;  // (B, windows, h, d), last stride 1
  int64_t grad_summary_stride[3];
  const void* dq_extra;  // (B, H, W, h, d), last stride 1: to be added to the queries' gradient
  int64_t dq_extra_stride[4];
  void* grad_qkv;     // (B, H, W, 3, h, d)
  void* grad_token;   // (3, h, d), float32 (float64)
  void* grad_pad_kv;  // (2, h, d), float32 (float64)
  void* workspace;    // partial sums of the last two
};

inline int64_t window_rows(const AbstractTokenAttentionParams& p) {
  return ceil_div<int64_t>(p.H, p.P);
}
inline int64_t window_cols(const AbstractTokenAttentionParams& p) {
  return ceil_div<int64_t>(p.W, p.P);
}

// CPU. A launch is cut into chunks by shape alone, never by the number of threads, so that no bit
// of a result depends on them. One table per instruction set.
struct AbstractTokenAttentionCpu {
  int64_t (*chunks)(const AbstractTokenAttentionParams&);
  void (*forward)(const AbstractTokenAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  int64_t (*workspace_bytes)(const AbstractTokenAttentionParams&);  // of the backward
  void (*backward)(const AbstractTokenAttentionParams&, int64_t chunk_begin, int64_t chunk_end);
  void (*reduce)(const AbstractTokenAttentionParams&);  // workspace -> grad_token, grad_pad_kv
};

}  // namespace hybrid

// CUDA launchers: 0, or a cudaError_t. `stream` is a cudaStream_t.
extern "C" {
int64_t hk_abstract_token_attention_workspace_bytes(const hybrid::AbstractTokenAttentionParams*);
int hk_abstract_token_attention_forward(const hybrid::AbstractTokenAttentionParams*, void* stream);
int hk_abstract_token_attention_backward(const hybrid::AbstractTokenAttentionParams*, void* stream);
}
