// What a launch is cut into: chunks of windows, and steps of a chunk, whose pixels stay in caches.
//
// Windows take their values from one buffer and add their results up in another, in ascending
// order. No two workers ever add to the same pixel: a chunk owns rows of the map, and also computes
// the windows above that reach into them.
#pragma once

#include "cpu_pixels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kBandRows = 16;       // rows of windows in a chunk, of a large image
constexpr int64_t kChunkWindows = 256;  // windows (of every head) in a chunk of small images

// Bands of one image, or whole small images.
struct ChunkCut {
  int64_t bands, images, chunks;  // per image; per chunk; in all

  explicit ChunkCut(const ConvAttentionParams& p, int64_t chunk_windows = kChunkWindows)
      : bands(ceil_div(p.H2, kBandRows)),
        images(bands > 1 ? 1 : ceil_div(chunk_windows, p.H2 * p.W2 * p.h)),
        chunks(ceil_div(p.B, images) * bands) {}
};

// Rows of pixels count from 0 in the buffers, which is row `first` of the map.
struct Step {
  int64_t image, images;
  int64_t window, windows;     // rows of windows
  bool is_own;                 // else they are computed only for what they add to the chunk's rows
  int64_t first, kept, rows;   // of the rows, the first `kept` ones were there before
  int64_t finished_before;     // rows that the step before finished, and that are gone now
  int64_t finished;            // rows that no later step adds to
  int64_t own_begin, own_end;  // rows of the map that the chunk owns

  bool owns(int64_t row) const { return first + row >= own_begin && first + row < own_end; }
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// body(Step) for the steps of one band of some images, in ascending order.
template <class T, class Body>
void for_band_steps(const ConvAttentionParams& p, const StepLayout<T>& layout, Step step,
                    int64_t own_window, int64_t end_window, const Body& body) {
  step.own_begin = own_window ? own_window * p.stride - p.padding : 0;
  step.own_end = end_window < p.H2 ? end_window * p.stride - p.padding : p.H;
  step.finished = 0;
  const int64_t above = smaller(own_window, (p.kernel - 1) / p.stride);
  for (step.window = own_window - above; step.window < end_window; step.window += step.windows) {
    step.is_own = step.window >= own_window;
    step.windows =
        smaller(layout.window_rows, (step.is_own ? end_window : own_window) - step.window);
    step.rows = layout.extent(p, step.windows, p.H);
    step.first = step.window * p.stride - p.padding;
    step.finished_before = step.finished;
    step.kept = step.finished ? p.kernel - 1 : 0;
    const bool is_last = step.window + step.windows >= end_window;
    step.finished = is_last ? step.rows : step.windows * p.stride;
    body(step);
  }
}

// body(Step) for all steps of a chunk.
template <class T, class Body>
void for_steps(const ConvAttentionParams& p, const StepLayout<T>& layout, const ChunkCut& cut,
               int64_t chunk, const Body& body) {
  const int64_t band = chunk % cut.bands, first = chunk / cut.bands * cut.images;
  const int64_t rows = ceil_div(p.H2, cut.bands), end = smaller(first + cut.images, p.B);
  for (int64_t image = first; image < end; image += layout.images) {
    Step step{};
    step.image = image;
    step.images = smaller(layout.images, end - image);
    for_band_steps(p, layout, step, band * rows, smaller((band + 1) * rows, p.H2), body);
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
