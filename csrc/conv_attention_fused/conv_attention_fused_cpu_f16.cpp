#include "cpu_fused_windows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void conv_attention_fused_compute<f16>(const ConvAttentionFusedParams& p, int64_t begin,
                                       int64_t end) {
  FusedWindows<f16> windows(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) windows.compute(chunk);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
