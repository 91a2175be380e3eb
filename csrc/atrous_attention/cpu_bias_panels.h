// The relative-position bias of one head, laid out so that the bias of any key against all queries
// of a window is one contiguous run; and the bias gradient in the same layout.
//
// In a window of `cols` columns, key (a_t, b_t) needs bias(a_s - a_t, b_s - b_t) for its queries
// (a_s, b_s), row by row. Panel b_t holds bias(a, b_s - b_t) for a = 1 - P .. P - 1 and all b_s;
// the run of key (a_t, b_t) starts there at a = -a_t. So cols * (2P - 1) * cols floats serve where
// the expanded table takes (P cols)^2, and both live in the first-level cache.
//
// A query that has no lane of its own (cpu_vector_tile.h) is the last one of a full P x P window.
// What it needs lies behind the panels: its bias to every key.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/simd.h"
#include "atrous_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

inline int64_t bias_offsets(const AtrousAttentionParams& p) {
  return int64_t{2 * p.P - 1} * (2 * p.P - 1);
}

// Shape of the panels for windows of `cols` columns, and the walk over them.
struct PanelShape {
  int P, cols;

  int side() const { return 2 * P - 1; }
  int floats() const { return cols * side() * cols + P * P + kLanes; }  // and a vector to overrun
  int run(int a_t, int b_t) const { return (b_t * side() + P - 1 - a_t) * cols; }
  int last_query() const { return cols * side() * cols; }

  // visit(i, r): float i of the panels belongs to row r of the bias table.
  template <class Visit>
  void each(Visit visit) const {
    int i = 0;
    for (int b_t = 0; b_t < cols; ++b_t)
      for (int a = 0; a < side(); ++a)
        for (int b_s = 0; b_s < cols; ++b_s) visit(i++, a * side() + b_s - b_t + P - 1);
    for (int a_t = 0; a_t < P; ++a_t)
      for (int b_t = 0; b_t < P; ++b_t) visit(i++, (2 * P - 2 - a_t) * side() + 2 * P - 2 - b_t);
  }
};

// Panels of all heads, one group for each pair (branch, width) met so far. A branch has at most
// three widths: P and, at the right edge of the map, two more.
class PanelGroups {
 public:
  PanelGroups(const AtrousAttentionParams& p, int branches)
      : P_(p.P), heads_(p.h), floats_(size_t{3} * branches * heads_ * stride()) {}

  void clear() { used_ = 0; }

  // The panels of a head; fill(shape, panels, head) is called for each head of a new group.
  template <class Fill>
  float* find(int branch, int cols, int head, Fill fill) {
    int i = 0;
    while (i < used_ && (groups_[i].branch != branch || groups_[i].cols != cols)) ++i;
    if (i == used_) {
      groups_[used_++] = {branch, cols};
      for (int h = 0; h < heads_; ++h) fill(PanelShape{P_, cols}, panels(i, h), h);
    }
    return panels(i, head);
  }

  template <class Visit>
  void each(Visit visit) const {
    for (int i = 0; i < used_; ++i)
      for (int h = 0; h < heads_; ++h) visit(PanelShape{P_, groups_[i].cols}, panels(i, h), h);
  }

 private:
  struct Group {
    int branch, cols;
  };
  size_t stride() const { return PanelShape{P_, P_}.floats(); }
  float* panels(int group, int head) const { return floats_ + (group * heads_ + head) * stride(); }

  const int P_, heads_;
  AlignedBuffer<float> floats_;
  int used_ = 0;
  Group groups_[3 * kMaxBranches];
};

// Panels of the bias times `factor`; zeros where there is no bias.
class BiasPanels {
 public:
  BiasPanels(const AtrousAttentionParams& p, float factor)
      : p_(p), factor_(factor), groups_(p, p.n) {}

  const float* find(int branch, int cols, int head) {
    return groups_.find(branch, cols, head, [&](PanelShape shape, float* panels, int h) {
      __builtin_memset(panels, 0, shape.floats() * sizeof(float));
      if (!p_.bias) return;
      const float* table = static_cast<const float*>(p_.bias) + branch * bias_offsets(p_) * p_.h;
      shape.each([&](int i, int r) { panels[i] = table[int64_t{r} * p_.h + h] * factor_; });
    });
  }

 private:
  const AtrousAttentionParams& p_;
  const float factor_;
  PanelGroups groups_;
};

// Panels of the bias gradient of one chunk.
class BiasGradPanels {
 public:
  explicit BiasGradPanels(const AtrousAttentionParams& p) : p_(p), groups_(p, 1) {}

  void begin_chunk() { groups_.clear(); }

  float* find(int cols, int head) {
    return groups_.find(0, cols, head, [](PanelShape shape, float* panels, int) {
      __builtin_memset(panels, 0, shape.floats() * sizeof(float));
    });
  }

  // Folds the panels into the chunk's table (offset, head) of the workspace.
  void end_chunk(int64_t chunk) const {
    const int64_t size = bias_offsets(p_) * p_.h;
    float* table = static_cast<float*>(p_.workspace) + chunk * size;
    __builtin_memset(table, 0, size * sizeof(float));
    groups_.each([&](PanelShape shape, const float* panels, int head) {
      shape.each([&](int i, int r) { table[int64_t{r} * p_.h + head] += panels[i]; });
    });
  }

 private:
  const AtrousAttentionParams& p_;
  PanelGroups groups_;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
