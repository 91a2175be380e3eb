// dwconv_act on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "../common/partial_sums.h"
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { dwconv_act_forward<decltype(x)>(p, begin, end); });
}

void backward(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { dwconv_act_backward<decltype(x)>(p, begin, end); });
}

void reduce(const DwconvActParams& p) {
  for_dtype(p.dtype, [&](auto x) {
    const auto sums = sums_of<decltype(x)>(p);
    sums.reduce(0, kTaps, p.C, p.grad_weight);
    sums.reduce(kTaps, 1, p.C, p.grad_bias);
  });
}

int64_t forward_jobs(const DwconvActParams& p) {
  return for_dtype(p.dtype, [&](auto x) {
    using T = decltype(x);
    return walks<T>(p) ? p.B * walks_per_image(p.H, kSide) : cut_of<T>(p).jobs;
  });
}

int64_t jobs(const DwconvActParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const DwconvActParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return sums_of<decltype(x)>(p).bytes(); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const DwconvActCpu& cpu_table<DwconvActCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr DwconvActCpu table{forward_jobs, jobs,     workspace_bytes,
                                      forward,      backward, reduce};
  return table;
}

}  // namespace hybrid
