// Where the windows of a launch lie, and how the launch is cut into chunks. Plain index maths.
//
// Along one axis, window w of a branch starts at pixel w / d * (P d) + w % d and takes every d-th
// pixel from there, P of them or as many as the map still has. A window is therefore always a full
// rectangle of rows x cols slots, and slots beyond the map need neither mask nor arithmetic.
#pragma once

#include "atrous_attention.h"

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

struct Axis {
  int64_t size, dilation, window;

  int64_t windows() const {
    const int64_t span = window * dilation, last = (size - 1) / span;
    const int64_t left = size - last * span;
    return last * dilation + (left < dilation ? left : dilation);
  }
  int64_t origin(int64_t w) const { return w / dilation * window * dilation + w % dilation; }
  int length(int64_t w) const {
    const int64_t left = ceil_div(size - origin(w), dilation);
    return static_cast<int>(left < window ? left : window);
  }
};

struct Window {
  int branch;
  int64_t image, row, col, dilation;  // row, col: the pixel of slot (0, 0)
  int rows, cols;                     // slots on the map
};

// Chunk c is part c / n of branch c % n: chunks worked on at a time share their pixels, and with
// them the pages of memory.
class ChunkPlan {
 public:
  explicit ChunkPlan(const AtrousAttentionParams& p) : n_(p.n) {
    int64_t most = 0;
    for (int k = 0; k < n_; ++k) {
      rows_[k] = {p.H, p.dilations[k], p.P};
      cols_[k] = {p.W, p.dilations[k], p.P};
      windows_[k] = p.B * rows_[k].windows() * cols_[k].windows();
      if (windows_[k] > most) most = windows_[k];
    }
    // Four windows pay for a chunk's share of the bias work; 256 chunks feed any number of cores.
    parts_ = ceil_div<int64_t>(256, n_);
    if (parts_ > ceil_div<int64_t>(most, 4)) parts_ = ceil_div<int64_t>(most, 4);
  }

  int64_t chunks() const { return parts_ * n_; }
  int branch(int64_t chunk) const { return static_cast<int>(chunk % n_); }
  int64_t first_window(int64_t chunk) const {
    return windows_[branch(chunk)] * (chunk / n_) / parts_;
  }
  int64_t end_window(int64_t chunk) const {
    return windows_[branch(chunk)] * (chunk / n_ + 1) / parts_;
  }

  // Window w of the branch: image by image, row by row.
  Window window(int branch, int64_t w) const {
    const Axis &row = rows_[branch], &col = cols_[branch];
    const int64_t c = w % col.windows(), r = w / col.windows() % row.windows();
    return {branch,        w / col.windows() / row.windows(),
            row.origin(r), col.origin(c),
            row.dilation,  row.length(r),
            col.length(c)};
  }

 private:
  int n_;
  int64_t parts_, windows_[kMaxBranches];
  Axis rows_[kMaxBranches], cols_[kMaxBranches];
};

// The next chunk; queue.end or beyond when there is none.
inline int64_t take(ChunkQueue& queue) {
  return __atomic_fetch_add(&queue.next, 1, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace hybrid
