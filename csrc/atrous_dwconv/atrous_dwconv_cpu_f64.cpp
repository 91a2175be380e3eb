#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void atrous_dwconv_forward<double>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<double>(p).forward(begin, end);
}

template <>
void atrous_dwconv_backward<double>(const AtrousDwconvParams& p, int64_t begin, int64_t end) {
  Worker<double>(p).backward(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
