// Single-query attention on the CPU in float16.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void attention_forward<f16>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  run_forward<f16, FloatArith>(p, begin, end);
}

template <>
void attention_backward<f16>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  run_backward<f16, FloatArith>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
