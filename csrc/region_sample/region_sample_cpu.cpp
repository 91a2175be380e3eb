// region_sample on the CPU, compiled once per instruction set. Bound by memory: the map is read in
// its order, once, and so is its gradient written; regional tokens and taps stay in the caches.
#include "../common/stencil/convolve.h"
#include "../common/stencil/region_rows.h"
#include "../common/stencil/walk.h"
#include "region_sample.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = RegionSampleParams;

inline RegionRows rows_of(const Params& p) { return RegionRows(p.B, p.rows, p.region * p.W); }

// The partial sums of the taps, and of the bias.
template <class T>
PartSums<T> sums_of(const Params& p) {
  const int64_t taps = p.grad_weight ? p.region * p.region : 0;
  return rows_of(p).sums<T>(taps + (p.grad_bias ? 1 : 0), p.C, p.workspace);
}

// Of region q in a row of regions.
inline int64_t pixels_of(const Params& p, int64_t q) {
  return smaller(p.region, p.W - q * p.region);
}

// A row of tokens. Each vector of channels of a region is summed in a register.
template <class T>
void sample_row(const Params& p, int64_t image, int64_t row) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  const int64_t C = p.C, region = p.region, step = p.x.stride[2], line = p.x.stride[1];
  const int64_t top = row * region, height = smaller(region, p.H - top);
  const auto* weight = static_cast<const Scalar*>(p.weight);
  const auto* bias = static_cast<const Scalar*>(p.bias);
  const T* x = p.x.row<T>(image, top, 0);
  T* s = p.s.row<T>(image, row, 0);
  Fetch ahead = Fetch::rows<T>(p.x, image, top + region, p.W, C);
  for (int64_t q = 0; q < p.columns; ++q, x += region * step, s += C) {
    const int64_t pixels = pixels_of(p, q);
    const int64_t bytes = height * pixels * Arithmetic<T>::kCount * static_cast<int64_t>(sizeof(T));
    for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      ahead.next(bytes);
      V sum = bias ? load_lanes(bias + c, lanes) : V{};
      for (int64_t u = 0; u < height; ++u)
        for (int64_t v = 0; v < pixels; ++v)
          sum = fma(load_lanes(weight + (u * region + v) * C + c, lanes),
                    load_lanes(x + u * line + v * step + c, lanes), sum);
      store_lanes(s + c, sum, lanes);
    });
  }
}

// What a worker holds during the backward: a row of gradients of tokens.
template <class T>
class BackwardWorker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 public:
  explicit BackwardWorker(const Params& p)
      : p_(p),
        width_(whole_vectors<T>(p.C)),
        tokens_(static_cast<size_t>(p.columns * width_)),
        streams_(p.grad_x.data && streams_map<T>(p.grad_x, p.B, p.H)) {
    zero<Scalar>(tokens_, p.columns * width_);  // idle lanes stay so
  }

  // A row of regions; adds to the sums of its part.
  void run(int64_t image, int64_t row, Scalar* sums, int64_t sum_row) const {
    load_row(p_.grad.row<T>(image, row, 0), p_.grad.stride[2], p_.columns, p_.C,
             static_cast<Scalar*>(tokens_), width_, Identity{});
    const int64_t region = p_.region, top = row * region;
    for (int64_t u = 0; u < smaller(region, p_.H - top); ++u) {
      if (p_.grad_x.data) spread_row(image, top + u, u);
      if (p_.grad_weight) add_row(image, top + u, sums + u * region * sum_row, sum_row);
    }
    if (p_.grad_weight) sums += region * region * sum_row;
    if (p_.grad_bias) add_pixels<T>(tokens_, p_.columns, width_, sums);
  }

 private:
  // Row i of dx, row u of its regions.
  void spread_row(int64_t image, int64_t i, int64_t u) const {
    const bool streams = streams_;
    const int64_t C = p_.C;
    const Scalar* taps = static_cast<const Scalar*>(p_.weight) + u * p_.region * C;
    const T* init = p_.dx_init.data ? p_.dx_init.row<T>(image, i, 0) : nullptr;
    T* dx = p_.grad_x.row<T>(image, i, 0);
    for (int64_t q = 0; q < p_.columns; ++q) {
      const Scalar* token = tokens_ + q * width_;
      for (int64_t v = 0; v < pixels_of(p_, q); ++v, dx += C) {
        for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          V value = load_lanes(taps + v * C + c, lanes) * load(token + c);
          if (init) value = value + load_lanes(init + c, lanes);
          stream_lanes(dx + c, value, lanes, streams);
        });
        if (init) init += p_.dx_init.stride[2];
      }
    }
  }

  // Adds row i of ds x to the sums of its taps.
  void add_row(int64_t image, int64_t i, Scalar* sums, int64_t sum_row) const {
    const T* x = p_.x.row<T>(image, i, 0);
    for (int64_t q = 0; q < p_.columns; ++q) {
      const Scalar* token = tokens_ + q * width_;
      for (int64_t v = 0; v < pixels_of(p_, q); ++v, x += p_.x.stride[2])
        for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          Scalar* sum = sums + v * sum_row + c;
          store(sum, fma(load(token + c), load_lanes(x + c, lanes), load(sum)));
        });
    }
  }

  const Params& p_;
  const int64_t width_;
  AlignedBuffer<Scalar> tokens_;
  const bool streams_;
};

int64_t forward_jobs(const Params& p) { return p.B * p.rows; }

int64_t backward_jobs(const Params& p) { return rows_of(p).parts(); }

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) {
    for (int64_t row = begin; row < end; ++row)
      sample_row<decltype(x)>(p, row / p.rows, row % p.rows);
  });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) {
    const RegionRows rows = rows_of(p);
    const auto sums = sums_of<decltype(x)>(p);
    const BackwardWorker<decltype(x)> worker(p);
    for (int64_t part = begin; part < end; ++part) {
      sums.clear(part);
      for (int64_t row = rows.begin(part); row < rows.end(part); ++row)
        worker.run(row / p.rows, row % p.rows, sums.at(part), sums.row);
    }
    stream_fence();
  });
}

void reduce(const Params& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    const int64_t taps = p.grad_weight ? p.region * p.region : 0;
    sums.reduce(0, taps, p.C, p.grad_weight);
    sums.reduce(taps, 1, p.C, p.grad_bias);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const RegionSampleCpu& cpu_table<RegionSampleCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr RegionSampleCpu table{forward_jobs, backward_jobs, workspace_bytes,
                                         forward,      backward,      reduce};
  return table;
}

}  // namespace hybrid
