// CPU kernels of propagate_cat. Compiled once per instruction set.
#include "../common/stencil/region_rows.h"
#include "../common/streaming.h"
#include "propagate_cat.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = PropagateCatParams;
using Part = PropagatePart;

template <class T>
struct Spread {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

  const Params& p;
  const Part& part;

  const Scalar* kernel(int64_t a, int64_t b) const {
    return static_cast<const Scalar*>(part.kernel) + (a * part.p + b) * part.C;
  }

  // Row i of y.
  void write_row(int64_t image, int64_t i) const {
    T* to = p.y.row<T>(image, i, part.first);
    const int64_t t = i / part.p, a = i % part.p;
    const int64_t covered = t < part.rows ? smaller(p.W, part.columns * part.p) : 0;
    const T* token = part.z.row<T>(image, t, 0);
    for (int64_t j = 0; j < covered; token += part.z.stride[2])
      for (int64_t b = 0; b < part.p && j < covered; ++b, ++j, to += p.C)
        write_pixel(token, part.kernel ? kernel(a, b) : nullptr, to);
    for (int64_t j = covered; j < p.W; ++j, to += p.C)
      for_each_vector<T>(part.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store_lanes(to + c, V{}, lanes);
      });
  }

  // The gradients of a row of tokens; sums (p, p, width) of the kernel's are added to.
  void gather_row(int64_t image, int64_t t, Scalar* sums) const {
    const T* token = part.z.row<T>(image, t, 0);
    const int64_t height = smaller(part.p, p.H - t * part.p);
    for (int64_t s = 0; s < part.columns; ++s, token += part.z.stride[2]) {
      const T* grad = p.grad.row<T>(image, t * part.p, part.first) + s * part.p * p.grad.stride[2];
      fetch_ahead(grad, height);
      gather_token(token, grad, height, smaller(part.p, p.W - s * part.p), sums);
      if (part.grad_z.data) store_token(image, t, s, grad, height);
    }
  }

 private:
  static constexpr int64_t kAhead = 16;  // pixels

  // Pieces of pixels lie too far apart for the processor to foresee.
  void fetch_ahead(const T* grad, int64_t height) const {
    constexpr int64_t kStep = kLine / int64_t{sizeof(T)};
    for (int64_t a = 0; a < height; ++a)
      for (int64_t b = kAhead; b < kAhead + part.p; ++b)
        for (int64_t c = 0; c < part.C; c += kStep)
          __builtin_prefetch(grad + a * p.grad.stride[1] + b * p.grad.stride[2] + c);
  }

  void write_pixel(const T* token, const Scalar* kernel, T* to) const {
    for_each_vector<T>(part.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      const V z = load_lanes(token + c, lanes);
      store_lanes(to + c, kernel ? z * load_lanes(kernel + c, lanes) : z, lanes);
    });
  }

  void gather_token(const T* token, const T* grad, int64_t height, int64_t width,
                    Scalar* sums) const {
    if (!sums) return;
    const int64_t row = whole_vectors<T>(part.C);
    for_each_vector<T>(part.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      const V z = load_lanes(token + c, lanes);
      for (int64_t a = 0; a < height; ++a)
        for (int64_t b = 0; b < width; ++b) {
          Scalar* sum = sums + (a * part.p + b) * row + c;
          const V dy = load_lanes(grad + a * p.grad.stride[1] + b * p.grad.stride[2] + c, lanes);
          store(sum, fma(dy, z, load(sum)));
        }
    });
  }

  void store_token(int64_t image, int64_t t, int64_t s, const T* grad, int64_t height) const {
    const int64_t width = smaller(part.p, p.W - s * part.p);
    T* to = part.grad_z.row<T>(image, t, 0) + s * part.C;
    for_each_vector<T>(part.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      V sum{};
      for (int64_t a = 0; a < height; ++a)
        for (int64_t b = 0; b < width; ++b) {
          const V dy = load_lanes(grad + a * p.grad.stride[1] + b * p.grad.stride[2] + c, lanes);
          sum = part.kernel ? fma(dy, load_lanes(kernel(a, b) + c, lanes), sum) : dy;
        }
      store_lanes(to + c, sum, lanes);
    });
  }
};

RegionRows runs_of(const Params& p, const Part& part) {
  return RegionRows(p.B, part.rows, part.columns * part.p * part.p);
}

template <class T>
PartSums<T> sums_of(const Params& p, const Part& part) {
  return runs_of(p, part).sums<T>(part.grad_kernel ? part.p * part.p : 0, part.C, part.workspace);
}

void forward(const Params& p, int64_t row_begin, int64_t row_end) {
  for_dtype(p.dtype, [&](auto type) {
    for (int64_t row = row_begin; row < row_end; ++row)
      for (int32_t i = 0; i < p.parts; ++i)
        Spread<decltype(type)>{p, p.part[i]}.write_row(row / p.H, row % p.H);
  });
}

void backward(const Params& p, const Part& part, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const RegionRows runs = runs_of(p, part);
    const PartSums<T> sums = sums_of<T>(p, part);
    const Spread<T> spread{p, part};
    for (int64_t run = begin; run < end; ++run) {
      if (part.grad_kernel) sums.clear(run);
      for (int64_t row = runs.begin(run); row < runs.end(run); ++row)
        spread.gather_row(row / part.rows, row % part.rows,
                          part.grad_kernel ? sums.at(run) : nullptr);
    }
  });
}

int64_t runs(const Params& p, const Part& part) { return runs_of(p, part).parts(); }

int64_t workspace_bytes(const Params& p, const Part& part) {
  return for_dtype(p.dtype, [&](auto type) { return sums_of<decltype(type)>(p, part).bytes(); });
}

void reduce(const Params& p, const Part& part) {
  for_dtype(p.dtype, [&](auto type) {
    sums_of<decltype(type)>(p, part).reduce(0, part.p * part.p, part.C, part.grad_kernel);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const PropagateCatCpu& cpu_table<PropagateCatCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr PropagateCatCpu table{forward, runs, workspace_bytes, backward, reduce};
  return table;
}

}  // namespace hybrid
