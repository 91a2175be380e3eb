// Fetches the rows that a head or window to come will read, a few during each product.
#pragma once

#include "cpu_products.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

class Prefetcher {
 public:
  // Forgets all streams; each new one has `count` rows, of which `per_product` go to a product.
  void start(int count, int per_product) {
    streams_ = stream_ = row_ = 0;
    count_ = count;
    per_product_ = per_product;
  }

  // Rows of `bytes` bytes at base + offsets[i] * scale bytes; part_step: see PrefetchRows.
  void add(const void* base, const int64_t* offsets, int64_t scale, int bytes,
           int64_t part_step = 0) {
    list_[streams_++] = {static_cast<const char*>(base), offsets, scale, part_step, bytes, 0};
  }

  // The share of the next product.
  PrefetchRows next() {
    if (stream_ == streams_) return {};
    PrefetchRows rows = list_[stream_];
    rows.offsets += row_;
    rows.count = count_ - row_ < per_product_ ? count_ - row_ : per_product_;
    row_ += rows.count;
    if (row_ == count_) row_ = 0, ++stream_;
    return rows;
  }

 private:
  static constexpr int kMaxStreams = 6;
  PrefetchRows list_[kMaxStreams];
  int streams_ = 0, stream_ = 0, row_ = 0, count_ = 0, per_product_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
