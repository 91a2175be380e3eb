#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void downsample_pair_forward<bf16>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<bf16>(p).forward(begin, end);
}

template <>
void downsample_pair_backward<bf16>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<bf16>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
