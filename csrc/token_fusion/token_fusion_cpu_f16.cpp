#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void token_fusion_forward<f16>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<f16> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.forward(chunk);
}

template <>
void token_fusion_backward<f16>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<f16> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.backward(chunk);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
