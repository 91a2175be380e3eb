// Atrous window attention on the CPU in float16.
#include "cpu_backward_tile.h"
#include "cpu_forward_tile.h"
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void attention_forward<f16>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<ForwardTile<FloatArith, f16>>(p, queue);
}

template <>
void attention_backward<f16>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<BackwardTile<FloatArith, f16>>(p, queue);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
