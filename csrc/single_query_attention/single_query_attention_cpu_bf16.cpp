// Single-query attention on the CPU in bfloat16.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {

#if defined(__AVX512BF16__)
namespace {

// Whether tokens are multiplied in pairs of channels, of tokens and of queries. For fewer queries,
// or where a head has no more channels than a vector of floats, pairs cost what they save.
bool takes_pairs(const SingleQueryAttentionParams& p) { return p.G >= 4 && p.d > kLanes; }

}  // namespace
#endif

template <>
void attention_forward<bf16>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (takes_pairs(p)) return run_forward<bf16, Bf16Arith>(p, begin, end);
#endif
  run_forward<bf16, FloatArith>(p, begin, end);
}

template <>
void attention_backward<bf16>(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
  if (takes_pairs(p)) return run_backward<bf16, Bf16Arith>(p, begin, end);
#endif
  run_backward<bf16, FloatArith>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
