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

  // `count` rows of `bytes` bytes, `step` bytes apart, to be read or to be written. `follows`: they
  // lie behind rows fetched for the head before; those in the same cache lines are left out.
  void add(const void* first, int64_t step, int64_t count, int bytes, bool written, bool follows) {
    if (count == 0) return;
    const int64_t begin = reinterpret_cast<uintptr_t>(first) % 64;
    if (follows && begin != 0 && begin + bytes <= 64 && step % 64 == 0) return;
    list_[streams_++] = {static_cast<const char*>(first), step, count, bytes, written};
    rows_ += count;
    share_ = ceil_div(rows_, blocks_);
  }

  void fetch() {
    for (int64_t due = share_; due > 0 && stream_ < streams_;) {
      const Rows rows = list_[stream_];  // in registers: it changes with every row
      const int64_t count = due < rows.left ? due : rows.left;
      rows.written ? fetch_rows<1>(rows, count) : fetch_rows<0>(rows, count);
      due -= count;
      list_[stream_].next += count * rows.step;
      list_[stream_].left -= count;
      if (count == rows.left) ++stream_;
    }
  }

 private:
  struct Rows {
    const char* next;
    int64_t step, left;
    int bytes;
    bool written;
  };

  template <int kWritten>
  inline __attribute__((always_inline)) static void fetch_rows(const Rows& rows, int64_t count) {
    const char* row = rows.next;
    for (int64_t i = 0; i < count; ++i, row += rows.step) {
      const char* line = row - reinterpret_cast<uintptr_t>(row) % 64;
      for (const char* end = row + rows.bytes; line < end; line += 64)
        __builtin_prefetch(line, kWritten, 2);
    }
  }

  AlignedBuffer<Rows> list_;
  int streams_ = 0, stream_ = 0;
  int64_t rows_ = 0, blocks_ = 1, share_ = 0;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
