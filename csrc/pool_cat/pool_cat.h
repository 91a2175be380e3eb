// Maps averaged to one grid, side by side on channels: parameters and launchers. Plain C++.
//
// Along an axis, cell t of Out cells averages elements [t In / Out, ceil((t + 1) In / Out)) of In.
// Element s then belongs to cells [s Out / In, ceil((s + 1) Out / In)), the same formula with the
// sizes exchanged. So forward and backward are one sum over windows of a source:
//
//   forward    y[t]  = 1 / (size of t's window)  sum of x[s] over the window of t
//   backward   dx[s] = sum of dy[t] / (size of t's window) over the window of s
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

constexpr int kMaxPooledMaps = 8;

// (B, H, W, C), last stride 1.
struct PoolSide {
  void* data;
  int64_t stride[3];  // in elements, of images, rows and pixels
  int64_t H, W;
};

// From a map to its slice of the grid, or back.
struct PoolTask {
  PoolSide source, target;
  int64_t C;
};

struct PoolCatParams {
  DType dtype;
  int64_t B;  // not zero when a launcher is called
  int32_t tasks;
  bool is_backward;
  int64_t parts;  // chunks of an image: each has a share of the rows of every target
  PoolTask task[kMaxPooledMaps];
};

// CPU: B * parts chunks. One table per instruction set.
struct PoolCatCpu {
  void (*compute)(const PoolCatParams&, int64_t chunk_begin, int64_t chunk_end);
};

}  // namespace hybrid
