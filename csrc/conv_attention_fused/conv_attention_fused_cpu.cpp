// The fused C-MHSA on the CPU: the table of kernels. Compiled once per instruction set.
#include "cpu_fused_windows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = ConvAttentionFusedParams;

int64_t chunks(const Params& p) { return fused_cut(p).chunks; }

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.windows.dtype, [&](auto type) {
    const ChunkSums<decltype(type)> sums(p);
    return chunks(p) * sums.all * int64_t{sizeof(typename ChunkSums<decltype(type)>::Scalar)};
  });
}

void compute(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.windows.dtype,
            [&](auto type) { conv_attention_fused_compute<decltype(type)>(p, begin, end); });
}

void reduce(const Params& p) {
  for_dtype(p.windows.dtype, [&](auto type) { ChunkSums<decltype(type)>(p).reduce(p, chunks(p)); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const ConvAttentionFusedCpu& cpu_table<ConvAttentionFusedCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr ConvAttentionFusedCpu table{chunks, workspace_bytes, compute, reduce};
  return table;
}

}  // namespace hybrid
