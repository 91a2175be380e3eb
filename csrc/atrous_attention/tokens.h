// Where the tokens of one window lie in memory.
#pragma once

#include "windows.h"

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

constexpr int kMaxTokens = kMaxWindow * kMaxWindow;

// Token a * cols + b is slot (a, b). Offsets are in elements, of the branch's head 0.
struct Tokens {
  Window window;
  int count;
  int64_t pixel[kMaxTokens];     // (image * H + i) * W + j: row of the contiguous arrays
  int64_t qkv[kMaxTokens];       // of the query
  int64_t grad_out[kMaxTokens];  // filled for the backward only

  void locate(const AtrousAttentionParams& p, const Window& w) {
    window = w;
    count = w.slots();
    const int64_t first = (w.image * p.H + w.row) * p.W + w.col;
    fill(pixel, first, w.dilation * p.W, w.dilation);
    const int64_t* stride = p.qkv_stride;
    const int64_t origin =
        w.image * stride[0] + w.row * stride[1] + w.col * stride[2] + w.branch * stride[3];
    fill(qkv, origin, w.dilation * stride[1], w.dilation * stride[2]);
    if (!p.grad_out) return;
    const int64_t* grad = p.grad_out_stride;
    const int64_t grad_origin =
        w.image * grad[0] + w.row * grad[1] + w.col * grad[2] + w.branch * grad[3];
    fill(grad_out, grad_origin, w.dilation * grad[1], w.dilation * grad[2]);
  }

 private:
  void fill(int64_t* offsets, int64_t origin, int64_t row_step, int64_t col_step) const {
    for (int a = 0, t = 0; a < window.rows; ++a)
      for (int b = 0; b < window.cols; ++b, ++t) offsets[t] = origin + a * row_step + b * col_step;
  }
};

}  // namespace
}  // namespace hybrid
