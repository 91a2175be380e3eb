// CPU kernels of pool_cat: one row of a target after the other. Compiled once per instruction set.
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

// One pixel of the target: rows x columns of the source, kWeighted: divided by their own windows.
template <class T, bool kWeighted>
class Pixel {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;
  static constexpr int kBlock = 4;  // vectors: that many sums hide the latency of an addition

 public:
  Pixel(const PoolTask& task, int64_t image, Range rows, Range columns)
      : task_(task),
        source_(static_cast<const T*>(task.source.data) + image * task.source.stride[0]),
        rows_(rows),
        columns_(columns) {}

  void compute(T* out) const {
    constexpr int64_t kStep = kBlock * kCount;
    int64_t c = 0;
    for (; c + kStep <= task_.C; c += kStep) {
      V sums[kBlock];
      add_up<kBlock>(c, All{}, sums);
#pragma GCC unroll 4
      for (int i = 0; i < kBlock; ++i) store(out + c + i * kCount, sums[i]);
    }
    for_each_vector<T>(task_.C - c, [&](int64_t rest, auto lanes) {
      V sum[1];
      add_up<1>(c + rest, lanes, sum);
      store_lanes(out + c + rest, sum[0], lanes);
    });
  }

 private:
  template <int N, class Lanes>
  void add_up(int64_t c, Lanes lanes, V (&sums)[N]) const {
    for (V& sum : sums) sum = broadcast(Scalar(0));
    for (int64_t y = rows_.begin; y < rows_.end; ++y) {
      const T* row = source_ + y * task_.source.stride[1] + c;
      for (int64_t x = columns_.begin; x < columns_.end; ++x) {
        const T* pixel = row + x * task_.source.stride[2];
        [[maybe_unused]] const V share = broadcast(kWeighted ? weight(y, x) : Scalar(1));
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
          const V value = load_lanes(pixel + i * kCount, lanes);
          sums[i] = kWeighted ? fma(value, share, sums[i]) : sums[i] + value;
        }
      }
    }
    if (kWeighted) return;
    const V number = broadcast(static_cast<Scalar>(rows_.size() * columns_.size()));
    for (V& sum : sums) sum = sum / number;
  }

  // Of a cell, in the backward: one by the pixels that it averages.
  Scalar weight(int64_t y, int64_t x) const {
    const int64_t rows = window(y, task_.target.H, task_.source.H).size();
    return Scalar(1) / static_cast<Scalar>(rows * window(x, task_.target.W, task_.source.W).size());
  }

  const PoolTask& task_;
  const T* source_;
  Range rows_, columns_;
};

template <class T, bool kWeighted>
void compute_row(const PoolTask& task, int64_t image, int64_t row) {
  const PoolSide& target = task.target;
  const Range rows = window(row, task.source.H, target.H);
  T* out = static_cast<T*>(target.data) + image * target.stride[0] + row * target.stride[1];
  for (int64_t x = 0; x < target.W; ++x, out += target.stride[2])
    Pixel<T, kWeighted>(task, image, rows, window(x, task.source.W, target.W)).compute(out);
}

// Row `row` of those of all tasks.
template <class T>
void compute_any_row(const PoolCatParams& p, int64_t image, int64_t row) {
  const PoolTask* task = p.task;
  while (row >= task->target.H) row -= (task++)->target.H;
  if (p.is_backward)
    compute_row<T, true>(*task, image, row);
  else
    compute_row<T, false>(*task, image, row);
}

void compute(const PoolCatParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    for (int64_t i = begin; i < end; ++i)
      compute_any_row<decltype(type)>(p, i / p.target_rows, i % p.target_rows);
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
