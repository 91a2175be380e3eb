#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void downsample_pair_forward<float>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<float>(p).forward(begin, end);
}

template <>
void downsample_pair_backward<float>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<float>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
