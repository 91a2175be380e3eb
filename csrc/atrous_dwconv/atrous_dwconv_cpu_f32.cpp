#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void atrous_dwconv_forward<float>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<float>(p).forward(begin, end);
}

template <>
void atrous_dwconv_backward<float>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<float>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
