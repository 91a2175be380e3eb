// The last few rows of a map as a stencil wants them: a block of channels in float (double), as
// whole vectors, with zeros at both ends. Whatever comes before the stencil, an activation, a norm,
// a sum of maps, is applied once per pixel when its row is filled in.
#pragma once

#include "../aligned_buffer.h"
#include "../arithmetic.h"
#include "../streaming.h"
#include "map.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class Scalar>
class RowRing {
 public:
  // `rows` rows of a map of `height` rows and `pixels` pixels by `width` channels, with `halo`
  // pixels of zeros at both ends.
  RowRing(int64_t rows, int64_t height, int64_t pixels, int64_t halo, int64_t width)
      : rows_(rows),
        height_(height),
        pitch_((pixels + 2 * halo) * width),
        start_(halo * width),
        data_(static_cast<size_t>(rows * pitch_)) {
    for (int64_t i = 0; i < rows * pitch_; ++i) data_[i] = 0;
  }

  // The next row to be filled, as in a new image.
  void restart(int64_t row) { next_ = row > 0 ? row : 0; }

  // fill(i, first pixel) for the rows up to `last` that the map has and that are not there yet.
  template <class Fill>
  void fill_to(int64_t last, const Fill& fill) {
    for (; next_ <= last && next_ < height_; ++next_) fill(next_, slot(next_));
  }

  // Where the first pixel of row i lies, or null outside the map: zeros.
  const Scalar* row(int64_t i) const { return i < 0 || i >= height_ ? nullptr : slot(i); }

 private:
  Scalar* slot(int64_t i) const { return data_ + i % rows_ * pitch_ + start_; }

  const int64_t rows_, height_, pitch_, start_;
  int64_t next_ = 0;
  AlignedBuffer<Scalar> data_;
};

// Rows of a map that will be read soon, to be fetched vector by vector while the stencil computes:
// kStep rows from i on, and with every output kStep pixels of each. After the last row of an image
// comes the next image; nothing is read, so that there need not be one.
template <class T, int kStep = 1>
struct Ahead {
  const T* rows[kStep];
  int64_t stride;

  Ahead(const InputMap& map, int64_t height, int64_t image, int64_t i, int64_t channel)
      : stride(map.stride[2]) {
    for (int s = 0; s < kStep; ++s, ++i)
      rows[s] = map.row<T>(i < height ? image : image + 1, i < height ? i : i - height, channel);
  }

  void fetch(int64_t j, int64_t c) const {
    for (const T* row : rows)
      for (int s = 0; s < kStep; ++s) __builtin_prefetch(row + (j * kStep + s) * stride + c);
  }
};

// Whether a result (B, H, W, C) is large and in whole lines, so that it is better streamed.
template <class T>
bool streams_map(const OutputMap& map, int64_t B, int64_t H, int64_t count = 1) {
  const int64_t row = map.C * static_cast<int64_t>(sizeof(T));
  return streams_rows(reinterpret_cast<uintptr_t>(map.data), row, count * B * H * map.W * row);
}

struct Identity {
  template <class V>
  V operator()(V x, int64_t) const {
    return x;
  }
};

// One row of a map into a ring: apply(value, channel) of every vector of channels. `step` pixels
// apart in the ring; those between stay zero.
template <class T, class Apply>
void load_row(const T* from, int64_t stride, int64_t pixels, int64_t channels,
              typename Arithmetic<T>::Scalar* to, int64_t step, const Apply& apply) {
  for (int64_t j = 0; j < pixels; ++j, from += stride, to += step)
    for_each_vector<T>(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      store(to + c, apply(load_lanes(from + c, lanes), c));
    });
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
