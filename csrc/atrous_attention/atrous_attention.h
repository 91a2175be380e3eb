// Atrous window attention: parameters and launchers. Plain C++, seen by torch's side, by the CPU
// kernels, by nvcc and by the host emulator alike.
//
// Membership: pixel (i, j) of branch dilation d has phase (i % d, j % d), and lies in window
// (i / (P d), j / (P d)) at slot (i / d % P, j / d % P). Slots beyond the map are no keys and no
// queries. bias is indexed by query slot minus key slot:
//   r(s, t) = (a_s - a_t + P - 1) * (2P - 1) + (b_s - b_t + P - 1)
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

struct AtrousAttentionParams {
  DType dtype;         // of qkv, out and their gradients
  int64_t B, H, W;     // images, rows, columns; none is zero when a launcher is called
  int32_t n, h, e, P;  // branches, heads, head width, window side
  int32_t dilations[kMaxBranches];
  double scale;

  const void* qkv;        // (B, H, W, n, 3, h, e), last stride 1
  int64_t qkv_stride[6];  // in elements, of the six leading dimensions
  const void* bias;       // (n, (2P-1)^2, h) contiguous float32 (float64 beside float64); or null
  void* out;              // (B, H, W, n, h, e) contiguous; read only in the backward
  void* lse;              // (B, H, W, n, h) contiguous float32 (float64); natural logarithm

  // Backward only.
  const void* grad_out;  // (B, H, W, n, h, e), last stride 1
  int64_t grad_out_stride[5];
  void* grad_qkv;   // (B, H, W, n, 3, h, e) contiguous; null when not asked for
  void* grad_bias;  // like bias; null when not asked for
  void* workspace;  // per-chunk (CPU) or per-block (CUDA) partial sums of grad_bias
};

// Chunks that nobody has taken yet; shared by the workers of a launch.
struct ChunkQueue {
  int64_t next, end;
};

// CPU. A launch is cut into chunks() pieces of whole windows; the cut depends on the shape alone,
// never on the number of threads, so that the partial sums of grad_bias, and with them every bit
// of the result, do not either. Each worker calls forward or backward, which take chunks until none
// is left: a worker that wakes up late holds up nobody. One table per instruction set.
struct AtrousAttentionCpu {
  int64_t (*chunks)(const AtrousAttentionParams&);
  int64_t (*workspace_bytes)(const AtrousAttentionParams&);  // of the backward; 0 without grad_bias
  void (*forward)(const AtrousAttentionParams&, ChunkQueue&);
  void (*backward)(const AtrousAttentionParams&, ChunkQueue&);
  void (*reduce_bias)(const AtrousAttentionParams&);  // after the backward: workspace -> grad_bias
};

}  // namespace hybrid

// CUDA launchers: 0, or a cudaError_t. `stream` is a cudaStream_t.
extern "C" {
int64_t hk_atrous_attention_workspace_bytes(const hybrid::AtrousAttentionParams*);
int hk_atrous_attention_forward(const hybrid::AtrousAttentionParams*, void* stream);
int hk_atrous_attention_backward(const hybrid::AtrousAttentionParams*, void* stream);
}
