// Fetches the rows that a head or window to come will read, a few during each product.
#pragma once

#include "../common/attention/cpu_products.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

class Prefetcher {
 public:
  // Forgets all streams; each new one has `count` rows, to be fetched within `products` products.
  void start(int count, int products) {
    streams_ = stream_ = row_ = left_ = 0;
    count_ = count;
    products_ = products;
  }

  // Rows of `bytes` bytes at base + offsets[i] * scale bytes; part_step: see PrefetchRows.
  void add(const void* base, const int64_t* offsets, int64_t scale, int bytes,
           int64_t part_step = 0) {
    list_[streams_++] = {static_cast<const char*>(base), offsets, scale, part_step, bytes, 0};
    left_ += count_;
  }

  // The share of the next product.
  PrefetchRows next() {
    if (left_ == 0 || left_out(Stage::prefetch)) return {};
    const int share = products_ > 1 ? ceil_div(left_, products_--) : left_;
    PrefetchRows rows = list_[stream_];
    rows.offsets += row_;
    rows.count = count_ - row_ < share ? count_ - row_ : share;
    left_ -= rows.count;
    row_ += rows.count;
    if (row_ == count_) row_ = 0, ++stream_;
    return rows;
  }

 private:
  static constexpr int kMaxStreams = 4;
  PrefetchRows list_[kMaxStreams];
  int streams_ = 0, stream_ = 0, row_ = 0, count_ = 0, products_ = 0, left_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
