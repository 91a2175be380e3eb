// CPU kernels of pool_cat: one row of a target after the other. Compiled once per instruction set.
#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"
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
        shares_(kForward ? 0 : task.source.W),
        width_(whole_vectors<T>(task.C)),
        sums_(kForward ? task.target.W * width_ : 0) {
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
    if constexpr (kForward)
      average(source, rows, out);
    else
      spread(source, rows, out);
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

  // Few elements of the source, often one, for every pixel of the target.
  void spread(const T* source, Range rows, T* out) const {
    const int64_t step = task_.source.stride[2];
    for (int64_t x = 0; x < task_.target.W; ++x, out += task_.target.stride[2]) {
      const Range columns = columns_[x];
      for_each_vector<T>(task_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        V sum = broadcast(Scalar(0));
        for (int64_t y = rows.begin; y < rows.end; ++y) {
          V of_row = broadcast(Scalar(0));
          const T* row = source + y * task_.source.stride[1] + c;
          for (int64_t k = columns.begin; k < columns.end; ++k)
            of_row = fma(load_lanes(row + k * step, lanes), broadcast(shares_[k]), of_row);
          sum = fma(of_row, broadcast(row_share(y)), sum);
        }
        store_lanes(out + c, sum, lanes);
      });
    }
  }

  Scalar row_share(int64_t y) const {
    return Scalar(1) / window(y, task_.target.H, task_.source.H).size();
  }

  const PoolTask& task_;
  AlignedBuffer<Range> columns_;  // of the source, for a column of the target
  AlignedBuffer<Scalar> shares_;  // of the source's columns
  const int64_t width_;           // channels in whole vectors
  AlignedBuffer<Scalar> sums_;    // of a row of the target
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
