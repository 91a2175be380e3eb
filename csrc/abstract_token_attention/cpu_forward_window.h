// Forward of one window and head.
#pragma once

#include "cpu_windows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
class ForwardWindow {
 public:
  explicit ForwardWindow(const Params& p)
      : p_(p), rows_(sizes_of(p)), attend_(sizes_of(p)), lse_(window_slots(p)) {
    rows_.streams = streams<T>(p.out, p.d) && streams<T>(p.summary, p.d);
  }

  void begin(const Window& w, int head) {
    rows_.clear();
    add_rows<T>(rows_, p_, w, head);
    rows_.out.add(summary_row<T>(p_, p_.summary, w, head));
    packed_map<T>(p_, p_.out, 1, 0, head).add_to(rows_.out, w);
    rows_.lse = has_all_pixels(w) ? lse_row<T>(p_, w, head) : lse_;
    attend_.begin(rows_);
  }

  // Fetches what this window and head will need, while those of `begin` are worked on.
  void prefetch(const Window& w, int head) {
    Prefetcher& ahead = attend_.prefetch();
    for (int part = 1; part < 4; ++part)  // keys and values are needed first
      qkv_map<T>(p_, part % 3, head).fetch(ahead, w, head, p_.d, false);
    if (!rows_.streams) packed_map<T>(p_, p_.out, 1, 0, head).fetch(ahead, w, head, p_.d, true);
  }

  void run(const Window& w, int head) {
    const int64_t panels = query_panels(rows_.q.count()).number;
    for (int64_t panel = 0; panel < panels; ++panel) attend_(panel);
    if (!has_all_pixels(w)) store_lse(lse_row<T>(p_, w, head), w);
  }

 private:
  bool has_all_pixels(const Window& w) const { return w.pixels() == p_.P * p_.P; }

  void store_lse(Statistic<T>* lse, const Window& w) const {
    for (int slot = 0; slot < window_slots(p_); ++slot) lse[slot] = 0;
    for_slots(p_, w, [&](int slot, int row) { lse[slot] = lse_[row]; });
  }

  const Params& p_;
  ForwardRows<T> rows_;
  ForwardKernel<T> attend_;
  AlignedBuffer<Statistic<T>> lse_;  // of a window that has not all pixels
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
