// token_fusion on the CPU: the table of kernels, and the sums over chunks. Compiled once per
// instruction set.
#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) { token_fusion_forward<decltype(type)>(p, begin, end); });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) { token_fusion_backward<decltype(type)>(p, begin, end); });
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto type) { return Panels<decltype(type)>(p).workspace_bytes(); });
}

void reduce(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    const Panels<decltype(type)> panels(p);
    for (int64_t image = begin; image < end; ++image) panels.reduce(image);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const TokenFusionCpu& cpu_table<TokenFusionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr TokenFusionCpu table{workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
