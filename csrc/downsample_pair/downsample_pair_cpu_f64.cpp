#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void downsample_pair_forward<double>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<double>(p).forward(begin, end);
}

template <>
void downsample_pair_backward<double>(const DownsamplePairParams& p, int64_t begin, int64_t end) {
  Worker<double>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
