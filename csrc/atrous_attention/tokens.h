// Where the tokens of one window lie in memory.
#pragma once

#include "windows.h"

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

constexpr int kMaxTokens = kMaxWindow * kMaxWindow;

// Token a * cols + b is slot (a, b). Behind the last token each array repeats it, so that a
// vector's worth of tokens may be taken anywhere.
struct Tokens {
  static constexpr int kOverrun = 15;

  Window window;
  int count = 0;
  int64_t row[kMaxTokens + kOverrun];  // (pixel * n + branch) * h, the row of head 0 in out, lse
  int64_t qkv[kMaxTokens + kOverrun];  // offset, in elements, of the query of head 0
  int64_t grad_out[kMaxTokens + kOverrun];  // likewise; for the backward only

  void locate(const AtrousAttentionParams& p, const Window& w) {
    window = w;
    count = w.rows * w.cols;
    const int64_t pixel = p.n * p.h;
    const int64_t rows[4] = {p.H * p.W * pixel, p.W * pixel, pixel, p.h};
    fill(row, rows);
    fill(qkv, p.qkv_stride);
    if (p.grad_out) fill(grad_out, p.grad_out_stride);
  }

 private:
  // stride: of images, rows, columns and branches.
  void fill(int64_t* offsets, const int64_t* stride) const {
    const int64_t first = window.image * stride[0] + window.row * stride[1] +
                          window.col * stride[2] + window.branch * stride[3];
    const int64_t row_step = window.dilation * stride[1], col_step = window.dilation * stride[2];
    int64_t* next = offsets;
    for (int a = 0; a < window.rows; ++a)
      for (int b = 0; b < window.cols; ++b) *next++ = first + a * row_step + b * col_step;
    for (int i = 0; i < kOverrun; ++i) next[i] = next[-1];
  }
};

}  // namespace
}  // namespace hybrid
