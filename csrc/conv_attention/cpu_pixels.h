// The pixels that a step of windows sees, beyond the edges of the map too, in the arithmetic's
// type: each head's channels rounded up to whole vectors, zeros outside.
#pragma once

#include <string.h>

#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"
#include "conv_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kBufferBytes = 48 << 10;  // of a buffer: several of them fit into a level-2 cache

// A step: some rows of windows of one image, or all of several small images.
template <class T>
struct StepLayout {
  int64_t channels, pixel, columns, row;  // per head; per pixel; per row in pixels, in elements
  int64_t window_rows, images;            // per step
  int64_t rows, image;                    // per image, in elements

  explicit StepLayout(const ConvAttentionParams& p)
      : channels(whole_vectors<T>(p.d)),
        pixel(p.h * channels),
        columns(extent(p, p.W2, p.W)),
        row(columns * pixel) {
    const int64_t budget = kBufferBytes / int64_t{sizeof(typename Arithmetic<T>::Scalar)};
    window_rows = (budget / row - p.kernel + 1) / p.stride;
    window_rows = window_rows < 1 ? 1 : window_rows < p.H2 ? window_rows : p.H2;
    rows = extent(p, window_rows, p.H);
    image = rows * row;
    images = window_rows < p.H2 || budget < image ? 1 : budget / image;
  }

  // Of the same steps, with all channels of a pixel as one head.
  static StepLayout of_pixels(const ConvAttentionParams& p, const StepLayout& steps) {
    StepLayout layout = steps;
    layout.channels = layout.pixel = whole_vectors<T>(p.C);
    layout.row = layout.columns * layout.pixel;
    layout.image = layout.rows * layout.row;
    return layout;
  }

  // Pixels along an axis from the first of some windows to the first of those after them, and what
  // these share with them; after the last ones, to the edge.
  static int64_t extent(const ConvAttentionParams& p, int64_t windows, int64_t size) {
    const int64_t pixels = windows * p.stride + p.kernel - 1, all = size + 2 * p.padding;
    return pixels < all ? pixels : all;
  }
};

template <class T>
class PixelBuffer {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;

  PixelBuffer(const ConvAttentionParams& p, const StepLayout<T>& layout, bool needed)
      : p_(p),
        layout_(layout),
        parts_(layout.channels == p.d || layout.channels == layout.pixel ? 1 : p.h),
        width_(p.C / parts_),
        data_(needed ? layout.images * layout.image : 0) {
    for (int64_t i = 0; needed && i < layout.images; ++i) clear(i, 0, layout.rows);
  }

  Scalar* data() const { return data_; }

  // Rows [begin, end) of an image's pixels, where row 0 is row `first` of the map. Beyond its left
  // and right edges the buffer is never written again.
  void read(const InputMap& map, int64_t place, int64_t image, int64_t first, int64_t begin,
            int64_t end) {
    const int64_t parts = parts_, width = width_, channels = layout_.channels, step = map.stride[2];
    for (int64_t r = begin; r < end; ++r) {
      const int64_t y = first + r;
      if (y < 0 || y >= p_.H) {
        clear(place, r, r + 1);
        continue;
      }
      const T* from = static_cast<const T*>(map.data) + image * map.stride[0] + y * map.stride[1];
      Scalar *to = pixels(place, r), *end_of_row = to + p_.W * layout_.pixel;
      for (; to < end_of_row; from += step, to += layout_.pixel)
        for (int64_t n = 0; n < parts; ++n)
          for_each_vector<T>(width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
            store(to + n * channels + c, load_lanes(from + n * width + c, lanes));
          });
    }
  }

  // Those of the rows that lie in rows [own_begin, own_end) of the map.
  void write(void* map, int64_t place, int64_t image, int64_t first, int64_t end, int64_t own_begin,
             int64_t own_end) const {
    const int64_t parts = parts_, width = width_, channels = layout_.channels, step = p_.C;
    for (int64_t r = 0; r < end; ++r) {
      const int64_t y = first + r;
      if (y < own_begin || y >= own_end) continue;
      T* to = static_cast<T*>(map) + (image * p_.H + y) * p_.W * step;
      const Scalar *from = pixels(place, r), *end_of_row = from + p_.W * layout_.pixel;
      for (; from < end_of_row; from += layout_.pixel, to += step)
        for (int64_t n = 0; n < parts; ++n)
          for_each_vector<T>(width, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
            store_lanes(to + n * width + c, load(from + n * channels + c), lanes);
          });
    }
  }

  // The first pixel of the map in a row of the buffer; the padding lies before it.
  Scalar* pixels(int64_t place, int64_t r) const {
    return row(place, r) + p_.padding * layout_.pixel;
  }

  void clear(int64_t place, int64_t begin, int64_t end) {
    memset(row(place, begin), 0, (end - begin) * layout_.row * sizeof(Scalar));
  }

  // Rows [begin, begin + count) become the first ones.
  void slide(int64_t begin, int64_t count) {
    memmove(data_, row(0, begin), count * layout_.row * sizeof(Scalar));
  }

 private:
  Scalar* row(int64_t place, int64_t r) const {
    return data_ + place * layout_.image + r * layout_.row;
  }

  const ConvAttentionParams& p_;
  const StepLayout<T>& layout_;
  const int64_t parts_, width_;  // runs of channels of a pixel: heads, or all heads as one
  AlignedBuffer<Scalar> data_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
