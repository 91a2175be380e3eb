#include "backward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void group_propagate_forward<float>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Forward<float> rows(p);
  rows(begin, end);
}

template <>
void group_propagate_backward<float>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Backward<float> rows(p);
  rows(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
