// Atrous window attention on the CPU in bfloat16.
#include "cpu_backward_tile.h"
#include "cpu_forward_tile.h"
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

#if defined(__AVX512BF16__)
using Arith = Bf16Arith;
#else
using Arith = FloatArith;
#endif

template <>
void attention_forward<bf16>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<ForwardTile<Arith, bf16>>(p, queue);
}

template <>
void attention_backward<bf16>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<BackwardTile<Arith, bf16>>(p, queue);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
