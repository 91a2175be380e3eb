// region_sample on the CPU, compiled once per instruction set. Bound by memory: the map is read in
// its order, once, and so is its gradient written; regional tokens and taps stay in the caches.
#include "../common/stencil/convolve.h"
#include "../common/stencil/cut.h"
#include "../common/streaming.h"
#include "region_sample.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = RegionSampleParams;

// Bands of whole regions. At hand are the taps, their sums, and a row of tokens.
template <class T>
Cut<T> cut_of(const Params& p) {
  return Cut<T>(p.B, p.H, p.W, p.C, 1, 2 * p.region * p.region + p.columns, p.region);
}

// The partial sums of the taps, and of the bias.
template <class T>
PartSums<T> sums_of(const Params& p) {
  const int64_t taps = p.grad_weight ? p.region * p.region : 0;
  return PartSums<T>(cut_of<T>(p), taps + (p.grad_bias ? 1 : 0), p.workspace);
}

// What a worker holds while it runs jobs.
template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 public:
  explicit Worker(const Params& p)
      : p_(p), cut_(cut_of<T>(p)), tokens_(static_cast<size_t>(p.columns * cut_.width)) {}

  void forward(int64_t begin, int64_t end) {
    for_each_row(begin, end, [&](const Job& job, int64_t image, int64_t i) {
      if (i % p_.region == 0) start_tokens(job);
      const T* x = p_.x.row<T>(image, i, job.channel);
      const Scalar* taps = taps_of_row(job, i);
      for (int64_t q = 0; q < p_.columns; ++q, x += p_.region * p_.x.stride[2]) {
        const int64_t pixels = pixels_of(q);
        Scalar* token = tokens_ + q * cut_.width;
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          V sum = load(token + c);
          for (int64_t v = 0; v < pixels; ++v)
            sum = fma(load_lanes(taps + v * p_.C + c, lanes),
                      load_lanes(x + v * p_.x.stride[2] + c, lanes), sum);
          store(token + c, sum);
        });
      }
      if ((i + 1) % p_.region == 0 || i + 1 == p_.H) store_tokens(job, image, i / p_.region);
    });
  }

  void backward(int64_t begin, int64_t end) {
    const PartSums<T> sums = sums_of<T>(p_);
    const bool streams = streams_rows(reinterpret_cast<uintptr_t>(p_.grad_x.data), p_.C * sizeof(T),
                                      p_.B * p_.H * p_.W * p_.C * sizeof(T));
    const int64_t taps = p_.grad_weight ? p_.region * p_.region : 0;
    for_each_row(begin, end, [&](const Job& job, int64_t image, int64_t i) {
      if (image == job.image_begin && i == job.row_begin) sums.clear(job, cut_.width);
      if (i % p_.region == 0) {
        load_row(p_.grad.row<T>(image, i / p_.region, job.channel), p_.grad.stride[2], p_.columns,
                 job.channels, static_cast<Scalar*>(tokens_), cut_.width, Identity{});
        if (p_.grad_bias)
          add_pixels<T>(tokens_, p_.columns, cut_.width, sums.at(job) + taps * sums.row);
      }
      if (p_.grad_x.data) spread_row(job, image, i, streams);
      if (p_.grad_weight)
        add_row(job, image, i, sums.row, sums.at(job) + i % p_.region * p_.region * sums.row);
    });
    stream_fence();
  }

 private:
  // body(job, image, row) for the rows of all jobs.
  template <class Body>
  void for_each_row(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t index = begin; index < end; ++index) {
      const Job job = cut_.job(index);
      for (int64_t image = job.image_begin; image < job.image_end; ++image)
        for (int64_t i = job.row_begin; i < job.row_end; ++i) body(job, image, i);
    }
  }

  // Of region q in a row.
  int64_t pixels_of(int64_t q) const { return smaller(p_.region, p_.W - q * p_.region); }

  const Scalar* taps_of_row(const Job& job, int64_t i) const {
    const auto* weight = static_cast<const Scalar*>(p_.weight) + job.channel;
    return weight + i % p_.region * p_.region * p_.C;
  }

  void start_tokens(const Job& job) {
    if (!p_.bias) return zero<Scalar>(tokens_, p_.columns * cut_.width);
    const auto* bias = static_cast<const Scalar*>(p_.bias) + job.channel;
    for (int64_t q = 0; q < p_.columns; ++q)
      for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) {
        store(tokens_ + q * cut_.width + c, load_lanes(bias + c, lanes));
      });
  }

  void store_tokens(const Job& job, int64_t image, int64_t row) const {
    T* s = p_.s.row<T>(image, row, job.channel);
    for (int64_t q = 0; q < p_.columns; ++q, s += p_.C)
      for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) {
        store_lanes(s + c, load(tokens_ + q * cut_.width + c), lanes);
      });
  }

  // Row i of dx.
  void spread_row(const Job& job, int64_t image, int64_t i, bool streams) const {
    const Scalar* taps = taps_of_row(job, i);
    const T* init = p_.dx_init.data ? p_.dx_init.row<T>(image, i, job.channel) : nullptr;
    T* dx = p_.grad_x.row<T>(image, i, job.channel);
    for (int64_t q = 0; q < p_.columns; ++q) {
      const Scalar* token = tokens_ + q * cut_.width;
      for (int64_t v = 0; v < pixels_of(q); ++v, dx += p_.C) {
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          V value = load_lanes(taps + v * p_.C + c, lanes) * load(token + c);
          if (init) value = value + load_lanes(init + c, lanes);
          stream_lanes(dx + c, value, lanes, streams);
        });
        if (init) init += p_.dx_init.stride[2];
      }
    }
  }

  // Adds row i of ds x to the sums of its taps.
  void add_row(const Job& job, int64_t image, int64_t i, int64_t sum_row, Scalar* sums) const {
    const T* x = p_.x.row<T>(image, i, job.channel);
    for (int64_t q = 0; q < p_.columns; ++q) {
      const Scalar* token = tokens_ + q * cut_.width;
      for (int64_t v = 0; v < pixels_of(q); ++v, x += p_.x.stride[2])
        for_each_vector<T>(job.channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          Scalar* sum = sums + v * sum_row + c;
          store(sum, fma(load(token + c), load_lanes(x + c, lanes), load(sum)));
        });
    }
  }

  const Params& p_;
  const Cut<T> cut_;
  AlignedBuffer<Scalar> tokens_;  // a row of them, or of their gradients
};

int64_t jobs(const Params& p) {
  int64_t count = 0;
  for_dtype(p.dtype, [&](auto x) { count = cut_of<decltype(x)>(p).jobs; });
  return count;
}

int64_t workspace_bytes(const Params& p) {
  int64_t bytes = 0;
  for_dtype(p.dtype, [&](auto x) { bytes = sums_of<decltype(x)>(p).bytes(); });
  return bytes;
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { Worker<decltype(x)>(p).forward(begin, end); });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { Worker<decltype(x)>(p).backward(begin, end); });
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
  static constexpr RegionSampleCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
