// Where the rows of an image and head lie, for the kernels that work on lists of rows; what to
// fetch ahead of them, and how a launch is cut.
#pragma once

#include "../common/attention/cpu_kernels.h"
#include "multiscale_attention.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = MultiscaleAttentionParams;

// Work on every image and head, each in `parts` pieces where there are too few to share out.
struct Cut {
  int64_t pairs, parts;

  int64_t chunks() const { return pairs * parts; }
};

constexpr int64_t kWantedChunks = 32;

inline Cut forward_cut(const Params& p) {
  const int64_t pairs = p.B * p.h, panels = query_panels(p.N).number;
  return {pairs, std::min(panels, ceil_div(kWantedChunks, pairs))};
}

// Pieces of the backward have partial sums of grad_q each: few of them.
inline Cut backward_cut(const Params& p) {
  const int64_t pairs = p.B * p.h, tiles = p.dtype == DType::f64 ? 1 : key_tiles(p.M).number;
  return {pairs, std::min({tiles, ceil_div(kWantedChunks, pairs), int64_t{8}})};
}

inline AttentionSizes sizes_of(const Params& p) {
  return {p.N, p.M, p.d, p.dv, p.scale, 4 * kMaxSegments + 4};
}

// Whether what is fetched for the next head stays in the cache until its turn. With more work on a
// head it would not: its tiles of keys are then read again for every panel of queries.
inline bool fits_cache(int64_t queries, int64_t keys) {
  return query_panels(queries).number * key_tiles(keys).number <= 8;
}

// Rows of the keys (or values) of all segments.
template <class T>
void add_keys(RowAddresses<T>& rows, const Params& p, AttentionTokens AttentionSegment::* which,
              int64_t image, int head) {
  for (int i = 0; i < p.segments; ++i) rows.add(p.segment[i].*which, image, head, p.segment[i].M);
}

// Row 0 of an image and head of a contiguous (B, rows, h, width).
template <class T>
T* packed_row(const Params& p, void* data, int64_t image, int head, int64_t rows, int width) {
  return static_cast<T*>(data) + (image * rows * p.h + head) * width;
}

template <class T>
class Forward {
 public:
  explicit Forward(const Params& p) : p_(p), rows_(sizes_of(p)), attend_(sizes_of(p)) {
    rows_.streams = streams<T>(p.out, p.dv);
  }

  void begin(int64_t image, int head) {
    rows_.clear();
    rows_.q.add(p_.q, image, head, p_.N);
    add_keys(rows_.k, p_, &AttentionSegment::k, image, head);
    add_keys(rows_.v, p_, &AttentionSegment::v, image, head);
    rows_.out.add(packed_row<T>(p_, p_.out, image, head, p_.N, p_.dv), int64_t{p_.h} * p_.dv, p_.N);
    rows_.lse = static_cast<Statistic<T>*>(p_.lse) + (image * p_.h + head) * p_.N;
    attend_.begin(rows_);
  }

  void prefetch(int64_t image, int head) {
    if (!fits_cache(p_.N, p_.M)) return;
    Prefetcher& ahead = attend_.prefetch();
    for (int i = 0; i < p_.segments; ++i) {
      const AttentionSegment& s = p_.segment[i];
      fetch_ahead<T>(ahead, s.k, image, head, s.M, p_.d);
      fetch_ahead<T>(ahead, s.v, image, head, s.M, p_.dv);
    }
    fetch_ahead<T>(ahead, p_.q, image, head, p_.N, p_.d);
    fetch_ahead<T>(ahead, p_.out, image, head, p_.N, p_.h, p_.dv);
  }

  void operator()(int64_t panel) { attend_(panel); }

 private:
  const Params& p_;
  ForwardRows<T> rows_;
  ForwardKernel<T> attend_;
};

template <class T>
class Backward {
 public:
  explicit Backward(const Params& p)
      : p_(p),
        scale_(static_cast<Statistic<T>>(p.scale)),
        rows_(sizes_of(p)),
        attend_(sizes_of(p), needs(p)) {}

  void begin(int64_t image, int head) {
    image_ = image;
    head_ = head;
    rows_.clear();
    rows_.q.add(p_.q, image, head, p_.N);
    add_keys(rows_.k, p_, &AttentionSegment::k, image, head);
    add_keys(rows_.v, p_, &AttentionSegment::v, image, head);
    rows_.grad_out.add(p_.grad_out, image, head, p_.N);
    rows_.out.add(out(), image, head, p_.N);
    rows_.lse = static_cast<const Statistic<T>*>(p_.lse) + (image * p_.h + head) * p_.N;
    attend_.begin(rows_);
  }

  void prefetch(int64_t image, int head) {
    if (!fits_cache(p_.N, p_.M)) return;
    Prefetcher& ahead = attend_.prefetch();
    fetch_ahead<T>(ahead, p_.q, image, head, p_.N, p_.d);
    fetch_ahead<T>(ahead, p_.grad_out, image, head, p_.N, p_.dv);
    if (key_tiles(p_.M).number > 1) fetch_ahead<T>(ahead, out(), image, head, p_.N, p_.dv);
    for (int i = 0; i < p_.segments; ++i) {
      const AttentionSegment& s = p_.segment[i];
      fetch_ahead<T>(ahead, s.k, image, head, s.M, p_.d);
      fetch_ahead<T>(ahead, s.v, image, head, s.M, p_.dv);
      fetch_ahead<T>(ahead, s.grad_k, image, head, s.M, p_.h, p_.d);
      fetch_ahead<T>(ahead, s.grad_v, image, head, s.M, p_.h, p_.dv);
    }
    fetch_ahead<T>(ahead, p_.grad_q, image, head, p_.N, p_.h, p_.d);
  }

  void operator()(int64_t tile) {
    attend_(tile);
    store_tile();
  }

  // dQ of the tiles since `begin`: to grad_q, or with several parts to the workspace.
  void end(int64_t part, int64_t parts) {
    if (!p_.grad_q) return;
    if (parts == 1) {
      store_queries(packed_row<T>(p_, p_.grad_q, image_, head_, p_.N, p_.d), int64_t{p_.h} * p_.d);
    } else {
      const int64_t piece = (image_ * p_.h + head_) * parts + part;
      store_queries(static_cast<Statistic<T>*>(p_.workspace) + piece * p_.N * p_.d, p_.d);
    }
  }

 private:
  static BackwardNeeds needs(const Params& p) {
    bool keys = false;
    for (int i = 0; i < p.segments; ++i) keys = keys || p.segment[i].grad_k;
    return {p.grad_q != nullptr, keys};
  }

  AttentionTokens out() const {
    const int64_t token = int64_t{p_.h} * p_.dv;
    return {p_.out, {p_.N * token, token, p_.dv}};
  }

  template <class To>
  void store_queries(To* first, int64_t step) {
    for (int64_t i = 0; i < p_.N; ++i)
      store_scaled(first + i * step, attend_.query_sum(i), p_.d, scale_);
  }

  // dK and dV of the tile to the gradients of the segments that it lies in.
  void store_tile() {
    const int64_t first = attend_.first_key();
    int64_t begin = 0;
    for (int i = 0; i < p_.segments; begin += p_.segment[i++].M) {
      const AttentionSegment& s = p_.segment[i];
      const int64_t from = std::max(begin, first);
      const int64_t to = std::min(begin + s.M, first + attend_.tile_keys());
      for (int64_t key = from; key < to; ++key) {
        const int64_t row = (image_ * s.M + key - begin) * p_.h + head_;
        const int t = static_cast<int>(key - first);
        if (s.grad_k)
          store_scaled(static_cast<T*>(s.grad_k) + row * p_.d, attend_.key_sum(t), p_.d, scale_);
        if (s.grad_v)
          store_scaled(static_cast<T*>(s.grad_v) + row * p_.dv, attend_.value_sum(t), p_.dv,
                       Statistic<T>{1});
      }
    }
  }

  const Params& p_;
  const Statistic<T> scale_;
  BackwardRows<T> rows_;
  BackwardKernel<T> attend_;
  int64_t image_ = 0;
  int head_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
