// Convolutional attention on the CPU: the table of kernels. Compiled once per instruction set.
#include "cpu_windows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

int64_t chunks(const ConvAttentionParams& p) { return ChunkCut(p).chunks; }

template <class T, int kSlots>
void compute_chunks(const ConvAttentionParams& p, int64_t begin, int64_t end) {
  Windows<T, kSlots> windows(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) windows.compute(chunk);
}

// Forward or backward, as the parameters say. Windows of 3 x 3, which all published models have,
// are unrolled.
void compute(const ConvAttentionParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (p.kernel == 3)
      compute_chunks<T, 9>(p, begin, end);
    else
      compute_chunks<T, 0>(p, begin, end);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const ConvAttentionCpu& cpu_table<ConvAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr ConvAttentionCpu table{chunks, compute};
  return table;
}

}  // namespace hybrid
