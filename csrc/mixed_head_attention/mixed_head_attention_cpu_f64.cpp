#include "cpu_backward.h"
#include "cpu_forward.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void mixed_head_attention_forward<double>(const MixedHeadAttentionParams& p, int64_t begin,
                                          int64_t end) {
  MixedForward<double> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels(chunk);
}

template <>
void mixed_head_attention_backward<double>(const MixedHeadAttentionParams& p, int64_t begin,
                                           int64_t end) {
  MixedBackward<double> panels(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) panels(chunk);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
