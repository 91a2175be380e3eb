// Multiscale attention on the CPU: backward in float32.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void attention_backward<float>(const MultiscaleAttentionParams& p, int64_t chunk_begin,
                               int64_t chunk_end) {
  run_backward<float>(p, chunk_begin, chunk_end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
