// Atrous window attention on the CPU in float32.
#include "cpu_backward_tile.h"
#include "cpu_forward_tile.h"
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void attention_forward<float>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<ForwardTile<FloatArith, float>>(p, queue);
}

template <>
void attention_backward<float>(const AtrousAttentionParams& p, ChunkQueue& queue) {
  run<BackwardTile<FloatArith, float>>(p, queue);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
