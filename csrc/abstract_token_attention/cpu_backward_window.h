// Backward of one window and head. The token's gradients, and those of pixels outside the map, are
// summed over the windows of a chunk.
#pragma once

#include "cpu_windows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int kSumParts = 5;  // query, key and value of the token, key and value of pad_kv

template <class T>
class BackwardWindow {
  using Sum = Statistic<T>;

 public:
  explicit BackwardWindow(const Params& p)
      : p_(p),
        scale_(static_cast<Sum>(p.scale)),
        rows_(sizes_of(p)),
        attend_(sizes_of(p), {p.grad_qkv || p.grad_token, true}),
        grads_{AddressList<T>(window_slots(p)), AddressList<T>(window_slots(p)),
               AddressList<T>(window_slots(p))},
        extra_(window_slots(p)),
        lse_(window_slots(p)) {}

  // Sums of the heads [first_head, end_head) start at zero; `sums`: (kSumParts, h, d), or null.
  void begin_chunk(Sum* sums, int first_head, int end_head) {
    sums_ = sums;
    if (!sums) return;
    for (int part = 0; part < kSumParts; ++part) {
      Sum* sum = part_row(p_, sums, part, first_head);
      for (int c = 0; c < (end_head - first_head) * p_.d; ++c) sum[c] = 0;
    }
  }

  void begin(const Window& w, int head) {
    rows_.clear();
    add_rows<T>(rows_, p_, w, head);
    rows_.grad_out.add(grad_summary_row<T>(p_, w, head));
    strided_map<T>(p_.grad_out, p_.grad_out_stride, head).add_to(rows_.grad_out, w);
    if (reads_out()) {
      rows_.out.add(summary_row<T>(p_, p_.summary, w, head));
      packed_map<T>(p_, p_.out, 1, 0, head).add_to(rows_.out, w);
    }
    rows_.lse = lse_row<T>(p_, w, head);
    if (w.pixels() < p_.P * p_.P) {
      for_slots(p_, w, [&](int slot, int row) { lse_[row] = rows_.lse[slot]; });
      rows_.lse = lse_;
    }
    attend_.begin(rows_);
    if (p_.grad_qkv) begin_targets(w, head);
  }

  // Fetches what this window and head will need, while those of `begin` are worked on.
  void prefetch(const Window& w, int head) {
    Prefetcher& ahead = attend_.prefetch();
    qkv_map<T>(p_, 0, head).fetch(ahead, w, head, p_.d, false);
    strided_map<T>(p_.grad_out, p_.grad_out_stride, head).fetch(ahead, w, head, p_.d, false);
    for (int part = 1; part < 3; ++part)
      qkv_map<T>(p_, part, head).fetch(ahead, w, head, p_.d, false);
    if (!p_.grad_qkv || streams<T>(p_.grad_qkv, p_.d)) return;
    for (int part = 0; part < 3; ++part)
      packed_map<T>(p_, p_.grad_qkv, 3, part, head).fetch(ahead, w, head, p_.d, true);
  }

  void run(const Window& w, int head) {
    for (int64_t tile = 0; tile < attend_.tiles(); ++tile) {
      attend_(tile);
      store_keys(w, head);
    }
    store_queries(w, head);
  }

 private:
  // A single tile of keys gets along without.
  bool reads_out() const {
    return std::is_same_v<T, double> || key_tiles(window_slots(p_)).number > 1;
  }

  void store_keys(const Window& w, int head) {
    const int64_t first = attend_.first_key();
    for (int t = 0; t < attend_.tile_keys(); ++t) {
      const int64_t row = first + t;
      const Sum *key = attend_.key_sum(t), *value = attend_.value_sum(t);
      if (row == 0) {
        add(1, head, key, scale_);
        add(2, head, value, 1);
      } else if (row > w.pixels()) {
        add(3, head, key, scale_);
        add(4, head, value, 1);
      } else if (p_.grad_qkv) {
        store_scaled(grads_[1][row], key, p_.d, scale_);
        store_scaled(grads_[2][row], value, p_.d, Sum{1});
      }
    }
  }

  void store_queries(const Window& w, int head) {
    if (p_.grad_token) add(0, head, attend_.query_sum(0), scale_);
    if (!p_.grad_qkv) return;
    for (int row = 1; row <= w.pixels(); ++row)
      store_scaled(grads_[0][row], attend_.query_sum(row), p_.d, scale_,
                   p_.dq_extra ? extra_[row] : nullptr);
  }

  void add(int part, int head, const Sum* from, Sum factor) {
    if (!sums_) return;
    Sum* sum = part_row(p_, sums_, part, head);
    for (int c = 0; c < p_.d; ++c) sum[c] += factor * from[c];
  }

  // Row 0, the token's, belongs to no map.
  void begin_targets(const Window& w, int head) {
    for (int part = 0; part < 3; ++part) {
      grads_[part].clear();
      grads_[part].add(nullptr);
      packed_map<T>(p_, p_.grad_qkv, 3, part, head).add_to(grads_[part], w);
    }
    if (!p_.dq_extra) return;
    extra_.clear();
    extra_.add(nullptr);
    strided_map<T>(p_.dq_extra, p_.dq_extra_stride, head).add_to(extra_, w);
  }

  const Params& p_;
  const Sum scale_;
  BackwardRows<T> rows_;
  BackwardKernel<T> attend_;
  AddressList<T> grads_[3];
  RowAddresses<T> extra_;
  AlignedBuffer<Sum> lse_;  // of a window that has not all pixels
  Sum* sums_ = nullptr;     // of the chunk
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
