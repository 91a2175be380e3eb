#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void token_fusion_forward<float>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<float> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.forward(chunk);
}

template <>
void token_fusion_backward<float>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<float> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.backward(chunk);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
