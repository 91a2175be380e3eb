#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void downsample_pair_forward<f16>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<f16>(p).forward(begin, end);
}

template <>
void downsample_pair_backward<f16>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<f16>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
