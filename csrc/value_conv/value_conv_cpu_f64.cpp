#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void value_conv_forward<double>(const ValueConvParams& p, int64_t begin, int64_t end) {
  with_worker<double>(p, [&](auto&& worker) { worker.forward(begin, end); });
}

template <>
void value_conv_backward<double>(const ValueConvParams& p, int64_t begin, int64_t end) {
  with_worker<double>(p, [&](auto&& worker) { worker.backward(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
