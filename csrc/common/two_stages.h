// Launches of two stages on the CPU: pieces of images, then images from their pieces.
#pragma once

#include "tensors.h"

namespace hybrid {

constexpr int64_t kManyImages = 16;  // are cut as a whole, which takes one parallel region

// first(begin, end) on images * pieces pieces, and second(begin, end) on images whose pieces are
// through.
template <class First, class Second>
void run_two_stages(int64_t images, int64_t pieces, const First& first, const Second& second) {
  if (images >= kManyImages) {
    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      first(begin * pieces, end * pieces);
      second(begin, end);
    });
    return;
  }
  torch::stable::parallel_for(0, images * pieces, 1, first);
  torch::stable::parallel_for(0, images, 1, second);
}

}  // namespace hybrid
