#include "backward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void group_propagate_forward<bf16>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Forward<bf16> rows(p);
  rows(begin, end);
}

template <>
void group_propagate_backward<bf16>(const GroupPropagateParams& p, int64_t begin, int64_t end) {
  Backward<bf16> rows(p);
  rows(begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
