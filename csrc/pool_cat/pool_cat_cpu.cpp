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
  explicit Rows(const PoolTask& task)
      : task_(task),
        columns_(task.target.W),
        column_shares_(kForward ? 0 : task.source.W),
        row_shares_(kForward ? 0 : task.source.H),
        width_(whole_vectors<T>(task.C)),
        sums_(kForward ? task.target.W * width_ : 0) {
    for (int64_t x = 0; x < task.target.W; ++x)
      columns_[x] = window(x, task.source.W, task.target.W);
    if (kForward) return;
    for (int64_t x = 0; x < task.source.W; ++x)
      column_shares_[x] = Scalar(1) / window(x, task.target.W, task.source.W).size();
    for (int64_t y = 0; y < task.source.H; ++y)
      row_shares_[y] = Scalar(1) / window(y, task.target.H, task.source.H).size();
  }

  void compute(int64_t image, int64_t row) {
    const PoolSide& target = task_.target;
    const Range rows = window(row, task_.source.H, target.H);
    const T* source = static_cast<const T*>(task_.source.data) + image * task_.source.stride[0];
    T* out = static_cast<T*>(target.data) + image * target.stride[0] + row * target.stride[1];
    if constexpr (kForward)
      average(source, rows, out);
    else
      spread(source, rows, out);
  }

 private:
  // Pixels of the source in the order of memory, which the processor can foresee. A row of a window
  // is summed in registers; between the rows, the sums of all windows stay in a cache.
  void average(const T* source, Range rows, T* out) {
    for (int64_t y = rows.begin; y < rows.end; ++y)
      for (int64_t x = 0; x < task_.target.W; ++x) {
        const Range columns = columns_[x];
        const WindowRow window{
            source + y * task_.source.stride[1] + columns.begin * task_.source.stride[2],
            columns.size(),
            sums_ + x * width_,
            out + x * task_.target.stride[2],
            Scalar(1) / static_cast<Scalar>(rows.size() * columns.size()),
            y == rows.begin,
            y + 1 == rows.end};
        add_row(window);
      }
  }

  struct WindowRow {
    const T* pixels;
    int64_t count;
    Scalar* sums;
    T* mean;
    Scalar share;  // of a pixel
    bool is_first, is_last;
  };

  void add_row(const WindowRow& window) const {
    constexpr int64_t kChunk = 4 * kCount;
    int64_t c = 0;
    for (; c + kChunk <= task_.C; c += kChunk) add_channels<4>(window, c, All{});
    for (; c + kCount <= task_.C; c += kCount) add_channels<1>(window, c, All{});
    if (c < task_.C) add_channels<1>(window, c, First{static_cast<int>(task_.C - c)});
  }

  // The processor's own prefetching stops at the end of every page.
  static constexpr int64_t kAhead = 2048;  // bytes

  template <int kVectors, class Lanes>
  inline __attribute__((always_inline)) void add_channels(const WindowRow& window, int64_t c,
                                                          Lanes lanes) const {
    const int64_t step = task_.source.stride[2];
    V sum[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[v] = window.is_first ? broadcast(Scalar(0)) : load(window.sums + c + v * kCount);
    const T* pixel = window.pixels + c;
    for (int64_t k = 0; k < window.count; ++k, pixel += step) {
#pragma GCC unroll 4
      for (int64_t byte = 0; byte < kVectors * kCount * int64_t{sizeof(T)}; byte += kLine)
        __builtin_prefetch(reinterpret_cast<const char*>(pixel) + kAhead + byte);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + load_lanes(pixel + v * kCount, lanes);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      if (window.is_last)
        store_lanes(window.mean + c + v * kCount, sum[v] * broadcast(window.share), lanes);
      else
        store(window.sums + c + v * kCount, sum[v]);
  }

  // Few elements of the source, mostly one, for every pixel of the target.
  void spread(const T* source, Range rows, T* out) const {
    for (int64_t x = 0; x < task_.target.W; ++x, out += task_.target.stride[2]) {
      const Range columns = columns_[x];
      const T* first =
          source + rows.begin * task_.source.stride[1] + columns.begin * task_.source.stride[2];
      if (rows.size() == 1 && columns.size() == 1)
        scale_pixel(first, row_shares_[rows.begin] * column_shares_[columns.begin], out);
      else
        sum_pixels(first, rows, columns, out);
    }
  }

  void scale_pixel(const T* pixel, Scalar share, T* out) const {
    for_each_vector<T>(task_.C, [=](int64_t c, auto lanes) __attribute__((always_inline)) {
      store_lanes(out + c, load_lanes(pixel + c, lanes) * broadcast(share), lanes);
    });
  }

  void sum_pixels(const T* first, Range rows, Range columns, T* out) const {
    for_each_vector<T>(task_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      V sum = broadcast(Scalar(0));
      for (int64_t y = 0; y < rows.size(); ++y) {
        V of_row = broadcast(Scalar(0));
        const T* pixel = first + y * task_.source.stride[1] + c;
        for (int64_t k = 0; k < columns.size(); ++k, pixel += task_.source.stride[2])
          of_row =
              fma(load_lanes(pixel, lanes), broadcast(column_shares_[columns.begin + k]), of_row);
        sum = fma(of_row, broadcast(row_shares_[rows.begin + y]), sum);
      }
      store_lanes(out + c, sum, lanes);
    });
  }

  const PoolTask& task_;
  AlignedBuffer<Range> columns_;                      // of the source, for a column of the target
  AlignedBuffer<Scalar> column_shares_, row_shares_;  // of the source's elements
  const int64_t width_;                               // channels in whole vectors
  AlignedBuffer<Scalar> sums_;                        // of a row of the target
};

// Chunks [begin, end): a share of the rows of every task, so that large maps do not all fall to one
// thread.
template <class T, bool kForward>
void compute_chunks(const PoolCatParams& p, int64_t begin, int64_t end) {
  for (int32_t t = 0; t < p.tasks; ++t) {
    Rows<T, kForward> rows(p.task[t]);
    const int64_t height = p.task[t].target.H;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t part = chunk % p.parts, last = height * (part + 1) / p.parts;
      for (int64_t row = height * part / p.parts; row < last; ++row)
        rows.compute(chunk / p.parts, row);
    }
  }
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
