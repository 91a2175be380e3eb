// value_conv on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "../common/partial_sums.h"
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const ValueConvParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { value_conv_forward<decltype(x)>(p, begin, end); });
}

void backward(const ValueConvParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { value_conv_backward<decltype(x)>(p, begin, end); });
}

void reduce(const ValueConvParams& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    sums.reduce(0, kTaps, p.C, p.grad_weight);
    sums.reduce(kBiasTerm, 1, p.C, p.grad_bias);
    sums.reduce(kScaleTerm, 1, p.C, p.grad_scale);
    sums.reduce(kShiftTerm, 1, p.C, p.grad_shift);
  });
}

int64_t jobs(const ValueConvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const ValueConvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const ValueConvCpu& cpu_table<ValueConvCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr ValueConvCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
