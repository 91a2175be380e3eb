#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void atrous_dwconv_forward<f16>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<f16>(p).forward(begin, end);
}

template <>
void atrous_dwconv_backward<f16>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<f16>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
