#include "fuse_chunks.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void fuse_forward<float>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<float, false>(p, begin, end);
}

template <>
void fuse_backward<float>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<float, true>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
