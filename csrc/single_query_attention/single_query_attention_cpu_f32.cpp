// Single-query attention on the CPU in float32.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void attention_forward<float>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  run_forward<float, FloatArith>(p, begin, end);
}

template <>
void attention_backward<float>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  run_backward<float, FloatArith>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
