// Which windows a chunk holds, and where their rows lie: the token, the pixels on the map, and with
// pad_kv the pixels outside.
#pragma once

#include "../common/attention/cpu_kernels.h"
#include "abstract_token_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = AbstractTokenAttentionParams;

struct Window {
  int64_t image, number;  // number: among the windows of all images
  int64_t row, col;       // of its first pixel
  int rows, cols;         // on the map

  Window(const Params& p, int64_t number) : number(number) {
    const int64_t across = window_cols(p), down = window_rows(p);
    image = number / across / down;
    row = number / across % down * p.P;
    col = number % across * p.P;
    rows = static_cast<int>(std::min<int64_t>(p.P, p.H - row));
    cols = static_cast<int>(std::min<int64_t>(p.P, p.W - col));
  }

  int pixels() const { return rows * cols; }
};

inline int64_t window_count(const Params& p) { return p.B * window_rows(p) * window_cols(p); }
inline int window_slots(const Params& p) { return 1 + p.P * p.P; }

// Windows in parts, and where there are too few to share out, their heads in groups.
class ChunkPlan {
 public:
  explicit ChunkPlan(const Params& p)
      : heads_(p.h), windows_(window_count(p)), parts_(std::min(kWantedChunks, windows_)) {
    groups_ = static_cast<int>(std::min<int64_t>(p.h, ceil_div(kWantedChunks, parts_)));
  }

  int64_t chunks() const { return parts_ * groups_; }
  int64_t parts() const { return parts_; }

  int64_t part(int64_t chunk) const { return chunk / groups_; }
  int64_t first_window(int64_t chunk) const { return windows_ * part(chunk) / parts_; }
  int64_t end_window(int64_t chunk) const { return windows_ * (part(chunk) + 1) / parts_; }
  int first_head(int64_t chunk) const { return heads_ * group(chunk) / groups_; }
  int end_head(int64_t chunk) const { return heads_ * (group(chunk) + 1) / groups_; }

 private:
  static constexpr int64_t kWantedChunks = 64;

  int group(int64_t chunk) const { return static_cast<int>(chunk % groups_); }

  int heads_, groups_;
  int64_t windows_, parts_;
};

// One head of a map (B, H, W, ..., h, d): where image 0 starts, and the strides of images, rows and
// columns.
template <class T>
struct HeadMap {
  T* data;
  int64_t stride[3];

  T* at(const Window& w) const {
    return data + w.image * stride[0] + w.row * stride[1] + w.col * stride[2];
  }
  // Adds the window's pixels on the map to a list.
  template <class List>
  void add_to(List& list, const Window& w) const {
    for (int a = 0; a < w.rows; ++a) list.add(at(w) + a * stride[1], stride[2], w.cols);
  }
  // `head` is the one whose map this is.
  void fetch(Prefetcher& ahead, const Window& w, int head, int e, bool written) const {
    for (int a = 0; a < w.rows; ++a)
      ahead.add(at(w) + a * stride[1], stride[2] * sizeof(T), w.cols, e * sizeof(T), written,
                head > 0);
  }
};

template <class T>
HeadMap<const T> qkv_map(const Params& p, int part, int head) {
  const int64_t* s = p.qkv_stride;
  return {static_cast<const T*>(p.qkv) + part * s[3] + head * s[4], {s[0], s[1], s[2]}};
}

template <class T>
HeadMap<const T> strided_map(const void* data, const int64_t* s, int head) {
  return {static_cast<const T*>(data) + head * s[3], {s[0], s[1], s[2]}};
}

// Of a contiguous (B, H, W, parts, h, d).
template <class T>
HeadMap<T> packed_map(const Params& p, void* data, int parts, int part, int head) {
  const int64_t pixel = int64_t{parts} * p.h * p.d;
  return {static_cast<T*>(data) + (part * int64_t{p.h} + head) * p.d,
          {p.H * p.W * pixel, p.W * pixel, pixel}};
}

// One head's row of a contiguous (parts, h, d).
template <class T>
T* part_row(const Params& p, T* data, int part, int head) {
  return data + (part * int64_t{p.h} + head) * p.d;
}

template <class T>
T* summary_row(const Params& p, void* data, const Window& w, int head) {
  return static_cast<T*>(data) + (w.number * p.h + head) * p.d;
}

template <class T>
const T* grad_summary_row(const Params& p, const Window& w, int head) {
  const int64_t* s = p.grad_summary_stride;
  const int64_t in_image = w.number - w.image * window_rows(p) * window_cols(p);
  return static_cast<const T*>(p.grad_summary) + w.image * s[0] + in_image * s[1] + head * s[2];
}

template <class T>
Statistic<T>* lse_row(const Params& p, const Window& w, int head) {
  return static_cast<Statistic<T>*>(p.lse) + (w.number * p.h + head) * window_slots(p);
}

// body(slot, row) for the rows that are the token or on the map: row 1 + a P + b of the log-sum-exp
// is a slot, and the kernels number without gaps.
template <class Body>
void for_slots(const Params& p, const Window& w, Body body) {
  body(0, 0);
  for (int a = 0, row = 1; a < w.rows; ++a)
    for (int b = 0; b < w.cols; ++b) body(1 + a * p.P + b, row++);
}

// Queries, keys and values of a window and head.
template <class T, class Rows>
void add_rows(Rows& rows, const Params& p, const Window& w, int head) {
  RowAddresses<T>* const lists[] = {&rows.q, &rows.k, &rows.v};
  for (int part = 0; part < 3; ++part) {
    lists[part]->add(part_row(p, static_cast<const T*>(p.token), part, head));
    qkv_map<T>(p, part, head).add_to(*lists[part], w);
  }
  if (!p.pad_kv) return;
  const int outside = p.P * p.P - w.pixels();
  for (int part = 1; part < 3; ++part)  // a step of 0: always the same row
    lists[part]->add(part_row(p, static_cast<const T*>(p.pad_kv), part - 1, head), 0, outside);
}

inline AttentionSizes sizes_of(const Params& p) {
  const int slots = window_slots(p), maps = 7;  // q, k, v, grad_out and three gradients
  return {slots, slots, p.d, p.d, p.scale, maps * p.P};
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
