#include "fuse_chunks.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void fuse_forward<double>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<double, false>(p, begin, end);
}

template <>
void fuse_backward<double>(const GatedFuseParams& p, int64_t begin, int64_t end) {
  run_chunks<double, true>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
