// CPU kernels of pool_cat: one row of a target after the other. Compiled once per instruction set.
#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"
#include "../common/streaming.h"
#include "pool_cat.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  bool operator==(const Range& other) const { return begin == other.begin && end == other.end; }
};

// Elements of the source that element t of the target sums, along one axis.
inline Range window(int64_t t, int64_t source, int64_t target) {
  return {t * source / target, ceil_div((t + 1) * source, target)};
}

// The sums of a task, row by row. kForward: means of the windows, else sums of the shares that the
// elements of the source have: one by the size of their own windows.
template <class T, bool kForward>
class Rows {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

 public:
  Rows(const PoolTask& task, int64_t images)
      : task_(task),
        streams_(!kForward && streams(task.target, images)),
        columns_(task.target.W),
        shares_(kForward ? 0 : task.source.W),
        width_(whole_vectors<T>(task.C)),
        sums_((kForward ? task.target.W : task.source.W) * width_) {
    for (int64_t x = 0; x < task.target.W; ++x)
      columns_[x] = window(x, task.source.W, task.target.W);
    for (int64_t x = 0; !kForward && x < task.source.W; ++x)
      shares_[x] = Scalar(1) / window(x, task.target.W, task.source.W).size();
  }

  void compute(int64_t image, int64_t row) {
    const PoolSide& target = task_.target;
    const Range rows = window(row, task_.source.H, target.H);
    const T* source = static_cast<const T*>(task_.source.data) + image * task_.source.stride[0];
    T* out = static_cast<T*>(target.data) + image * target.stride[0] + row * target.stride[1];
    if constexpr (kForward) {
      average(source, rows, out);
    } else {
      if (!(image == image_ && rows == rows_)) add_rows(source, rows);
      image_ = image;
      rows_ = rows;
      spread(out);
    }
  }

 private:
  // Pixels of the source in the order of memory, which it can foresee; the sums stay in a cache.
  void average(const T* source, Range rows, T* out) {
    for (int64_t y = rows.begin; y < rows.end; ++y)
      for (int64_t x = 0; x < task_.target.W; ++x)
        for (int64_t k = columns_[x].begin; k < columns_[x].end; ++k)
          add_pixel(source + y * task_.source.stride[1] + k * task_.source.stride[2],
                    sums_ + x * width_, y == rows.begin && k == columns_[x].begin);
    for (int64_t x = 0; x < task_.target.W; ++x, out += task_.target.stride[2]) {
      const V size = broadcast(static_cast<Scalar>(rows.size() * columns_[x].size()));
      for_each_vector<T>(task_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store_lanes(out + c, load(sums_ + x * width_ + c) / size, lanes);
      });
    }
  }

  // The processor's own prefetching stops at the end of every page.
  static constexpr int64_t kAhead = 2048;  // bytes

  void add_pixel(const T* pixel, Scalar* sums, bool is_first) const {
    for_each_vector<T>(task_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      __builtin_prefetch(reinterpret_cast<const char*>(pixel + c) + kAhead);
      const V value = load_lanes(pixel + c, lanes);
      store(sums + c, is_first ? value : load(sums + c) + value);
    });
  }

  // Whether a contiguous target is better written past the caches.
  static bool streams(const PoolSide& target, int64_t images) {
    const int64_t pixel = target.stride[2] * static_cast<int64_t>(sizeof(T));
    return streams_rows(reinterpret_cast<uintptr_t>(target.data), pixel,
                        images * target.H * target.W * pixel);
  }

  // Shares of some rows of the source, often one, which several rows of the target have in common.
  void add_rows(const T* source, Range rows) {
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const T* pixel = source + y * task_.source.stride[1];
      const Scalar of_row = Scalar(1) / window(y, task_.target.H, task_.source.H).size();
      for (int64_t x = 0; x < task_.source.W; ++x, pixel += task_.source.stride[2]) {
        const V share = broadcast(of_row * shares_[x]);
        for_each_vector<T>(task_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          Scalar* sum = sums_ + x * width_ + c;
          const V before = y == rows.begin ? broadcast(Scalar(0)) : load(sum);
          store(sum, fma(load_lanes(pixel + c, lanes), share, before));
        });
      }
    }
  }

  // A row of the target: the sums of few columns, often of one.
  void spread(T* out) const {
    const Scalar* sums = sums_;
    const int64_t width = width_, step = task_.target.stride[2];
    const bool streams = streams_;
    for (int64_t x = 0; x < task_.target.W; ++x, out += step) {
      const Range columns = columns_[x];
      for_each_vector<T>(task_.C, [=](int64_t c, auto lanes) __attribute__((always_inline)) {
        V sum = load(sums + columns.begin * width + c);
        for (int64_t k = columns.begin + 1; k < columns.end; ++k)
          sum = sum + load(sums + k * width + c);
        stream_lanes(out + c, sum, lanes, streams);
      });
    }
  }

  const PoolTask& task_;
  const bool streams_;
  AlignedBuffer<Range> columns_;  // of the source, for a column of the target
  AlignedBuffer<Scalar> shares_;  // of the source's columns
  const int64_t width_;           // channels in whole vectors
  AlignedBuffer<Scalar> sums_;    // of a row of the target; backward: of some rows of the source
  int64_t image_ = -1;            // where these are
  Range rows_{};
};

// Chunks [begin, end): a share of the rows of every task, so that large maps do not all fall to one
// thread.
template <class T, bool kForward>
void compute_chunks(const PoolCatParams& p, int64_t begin, int64_t end) {
  for (int32_t t = 0; t < p.tasks; ++t) {
    Rows<T, kForward> rows(p.task[t], p.B);
    const int64_t height = p.task[t].target.H;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t part = chunk % p.parts, last = height * (part + 1) / p.parts;
      for (int64_t row = height * part / p.parts; row < last; ++row)
        rows.compute(chunk / p.parts, row);
    }
  }
  stream_fence();
}

void compute(const PoolCatParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.is_backward)
      compute_chunks<T, false>(p, begin, end);
    else
      compute_chunks<T, true>(p, begin, end);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const PoolCatCpu& cpu_table<PoolCatCpu, Isa::HYBRID_ISA>() {
  static constexpr PoolCatCpu table{HYBRID_ISA::compute};
  return table;
}

}  // namespace hybrid
