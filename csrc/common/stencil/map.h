// Maps as the stencils take them; plain C++ that every parameter struct may include.
#pragma once

#include "../types.h"

namespace hybrid {

// A map (B, H, W, C) that is read, last stride 1.
struct InputMap {
  const void* data;
  int64_t stride[3];  // in elements, of images, rows and pixels

  template <class T>
  const T* row(int64_t image, int64_t i, int64_t channel) const {
    return static_cast<const T*>(data) + image * stride[0] + i * stride[1] + channel;
  }
};

// One that is written: (B, H, W, C) whose pixels lie C apart, and rows W * C.
struct OutputMap {
  void* data;  // null when not asked for
  int64_t image_stride, W, C;

  template <class T>
  T* row(int64_t image, int64_t i, int64_t channel) const {
    return static_cast<T*>(data) + image * image_stride + i * W * C + channel;
  }
};

}  // namespace hybrid
