// atrous_dwconv on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "../common/partial_sums.h"
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { atrous_dwconv_forward<decltype(x)>(p, begin, end); });
}

void backward(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { atrous_dwconv_backward<decltype(x)>(p, begin, end); });
}

void reduce(const AtrousDwconvParams& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    using Scalar = typename Arithmetic<decltype(x)>::Scalar;
    AlignedBuffer<Scalar> row(static_cast<size_t>(p.C));
    for (int64_t term = 0; p.grad_weight && term < p.n * kTaps; ++term) {
      sums.reduce(term, 1, p.C, row);
      const int64_t k = term / kTaps, tap = term % kTaps;
      Scalar* grad = static_cast<Scalar*>(p.grad_weight) + k * p.C * kTaps + tap;
      for (int64_t c = 0; c < p.C; ++c) grad[c * kTaps] = row[c];
    }
  });
}

int64_t jobs(const AtrousDwconvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const AtrousDwconvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const AtrousDwconvCpu& cpu_table<AtrousDwconvCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr AtrousDwconvCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
