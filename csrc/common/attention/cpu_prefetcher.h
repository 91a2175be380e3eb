// Fetches rows that are needed later, some beside every block of a product: in one burst they would
// wait for memory, like this they overlap with arithmetic.
#pragma once

#include "cpu_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

class Prefetcher {
 public:
  explicit Prefetcher(int most_streams) : list_(most_streams) {}

  // Forgets all rows; those added next are fetched within `blocks` calls of fetch().
  void start(int64_t blocks) {
    streams_ = stream_ = 0;
    rows_ = 0;
    blocks_ = blocks;
  }

  // `count` rows of `bytes` bytes, `step` bytes apart, to be read or to be written.
  void add(const void* first, int64_t step, int64_t count, int bytes, bool written) {
    if (count == 0) return;
    list_[streams_++] = {static_cast<const char*>(first), step, count, bytes, written};
    rows_ += count;
    share_ = ceil_div(rows_, blocks_);
  }

  void fetch() {
    for (int64_t i = 0; i < share_ && stream_ < streams_; ++i) {
      Rows& rows = list_[stream_];
      const char* line = rows.next - reinterpret_cast<uintptr_t>(rows.next) % 64;
      for (const char* end = rows.next + rows.bytes; line < end; line += 64)
        rows.written ? __builtin_prefetch(line, 1, 2) : __builtin_prefetch(line, 0, 2);
      rows.next += rows.step;
      if (--rows.left == 0) ++stream_;
    }
  }

 private:
  struct Rows {
    const char* next;
    int64_t step, left;
    int bytes;
    bool written;
  };
  AlignedBuffer<Rows> list_;
  int streams_ = 0, stream_ = 0;
  int64_t rows_ = 0, blocks_ = 1, share_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
