// How patch_embed is cut: rows of patches, counted through all images, in parts for threads and
// groups for products. The shape alone decides, never the number of threads.
#pragma once

#include "../common/stencil/cut.h"
#include "patch_embed.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kGroupPatches = 64;     // make a product that fills the registers
constexpr int64_t kPartElements = 16384;  // of x, make it worth while to wake a thread

struct PatchCut {
  int64_t total, parts, group;  // rows of patches: all of them, and of a group

  explicit PatchCut(const PatchEmbedParams& p)
      : total(p.B * p.rows), parts(1), group(ceil_div(kGroupPatches, p.columns)) {
    const int64_t by_work = p.B * p.H * p.W * p.C / kPartElements;
    const int64_t wanted = smaller(smaller(kJobs, by_work), total / group);
    while (2 * parts <= wanted) parts *= 2;  // a power of two, as the number of threads often is
  }

  int64_t begin(int64_t part) const { return total * part / parts; }

  // body(first row, rows) for the groups of parts [first, last).
  template <class Body>
  void for_groups(int64_t first, int64_t last, const Body& body) const {
    const int64_t end = begin(last);
    for (int64_t row = begin(first); row < end; row += group) body(row, smaller(group, end - row));
  }
};

// Pixels of x that row (column) t of patches has along an axis of `size`.
inline int64_t pixels_of(const PatchEmbedParams& p, int64_t t, int64_t size) {
  return smaller(p.patch, size - t * p.patch);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
