// downsample_pair on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "../common/partial_sums.h"
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { downsample_pair_forward<decltype(x)>(p, begin, end); });
}

void backward(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { downsample_pair_backward<decltype(x)>(p, begin, end); });
}

void reduce(const DownsamplePairParams& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    sums.reduce(0, kTapTerms[0], p.C, p.grad_weight[0]);
    sums.reduce(kTaps5, kTapTerms[1], p.C, p.grad_weight[1]);
    sums.reduce(kScaleTerm, 1, p.C, p.grad_scale);
    sums.reduce(kShiftTerm, 1, p.C, p.grad_shift);
  });
}

int64_t jobs(const DownsamplePairParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const DownsamplePairParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const DownsamplePairCpu& cpu_table<DownsamplePairCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr DownsamplePairCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
