// region_mix on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "mix_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = RegionMixParams;

int64_t forward_jobs(const Params& p) { return p.B * walks_per_image(p.H, p.side); }

int64_t backward_jobs(const Params& p) { return rows_of(p).parts(); }

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { region_mix_forward<decltype(x)>(p, begin, end); });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { region_mix_backward<decltype(x)>(p, begin, end); });
}

void reduce(const Params& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    const int64_t taps = p.grad_weight ? p.side * p.side : 0;
    sums.reduce(0, taps, p.C, p.grad_weight);
    sums.reduce(taps, 1, p.C, p.grad_bias);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const RegionMixCpu& cpu_table<RegionMixCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr RegionMixCpu table{forward_jobs, backward_jobs, workspace_bytes,
                                      forward,      backward,      reduce};
  return table;
}

}  // namespace hybrid
