// lift_pool on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const LiftPoolParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { lift_pool_forward<decltype(x)>(p, begin, end); });
}

void backward(const LiftPoolParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { lift_pool_backward<decltype(x)>(p, begin, end); });
}

void reduce(const LiftPoolParams& p) {
  for_dtype(p.dtype, [&](auto x) { sums_of<decltype(x)>(p).reduce(0, kTaps, p.C, p.grad_weight); });
}

int64_t jobs(const LiftPoolParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const LiftPoolParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const LiftPoolCpu& cpu_table<LiftPoolCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr LiftPoolCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
