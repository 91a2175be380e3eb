// How an op over regions of a map is cut where sums over pixels are wanted: into runs of rows of
// regions, all channels together, so that memory is met in its order. The shape alone decides.
#pragma once

#include "cut.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kBlockPixels = 64;  // worth a job, and a walk for one vector of channels

struct RegionRows {
  int64_t total, per_part;

  // Of `images` with `rows` rows of regions each, of so many pixels.
  RegionRows(int64_t images, int64_t rows, int64_t pixels)
      : total(images * rows),
        per_part(larger(ceil_div(total, kJobs), smaller(rows, ceil_div(kBlockPixels, pixels)))) {}

  int64_t parts() const { return ceil_div(total, per_part); }
  int64_t begin(int64_t part) const { return part * per_part; }
  int64_t end(int64_t part) const { return smaller(total, begin(part) + per_part); }

  // Sums of each part: `terms` rows of C channels.
  template <class T>
  PartSums<T> sums(int64_t terms, int64_t C, void* workspace) const {
    return PartSums<T>(parts(), terms, whole_vectors<T>(C), workspace);
  }
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
