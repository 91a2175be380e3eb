#include "fuse_chunks.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void fuse_forward<bf16>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<bf16, false>(p, begin, end);
}

template <>
void fuse_backward<bf16>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<bf16, true>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
