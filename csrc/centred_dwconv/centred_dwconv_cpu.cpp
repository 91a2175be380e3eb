// centred_dwconv on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <Pass pass>
void run(const CentredDwconvParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { centred_dwconv<decltype(x)>(p, pass, begin, end); });
}

void reduce(const CentredDwconvParams& p) {
  for_dtype(p.dtype,
            [&](auto x) { Workspace<decltype(x)>(p).taps.reduce(0, kTaps, p.C, p.grad_weight); });
}

int64_t jobs(const CentredDwconvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const CentredDwconvParams& p) {
  return for_dtype(p.dtype, [&](auto x) { return Workspace<decltype(x)>(p).bytes; });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const CentredDwconvCpu& cpu_table<CentredDwconvCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr CentredDwconvCpu table{jobs,
                                          workspace_bytes,
                                          run<Pass::forward_start>,
                                          run<Pass::forward_finish>,
                                          run<Pass::backward_start>,
                                          run<Pass::backward_finish>,
                                          reduce};
  return table;
}

}  // namespace hybrid
