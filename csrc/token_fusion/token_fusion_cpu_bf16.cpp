#include "cpu_panels.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void token_fusion_forward<bf16>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<bf16> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.forward(chunk);
}

template <>
void token_fusion_backward<bf16>(const TokenFusionParams& p, int64_t begin, int64_t end) {
  Panels<bf16> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels.backward(chunk);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
