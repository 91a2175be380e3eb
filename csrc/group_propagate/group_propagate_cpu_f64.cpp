#include "backward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void group_propagate_forward<double>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Forward<double> rows(p);
  rows(begin, end);
}

template <>
void group_propagate_backward<double>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Backward<double> rows(p);
  rows(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
