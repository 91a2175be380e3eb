#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void lift_pool_forward<bf16>(const LiftPoolParams& p, int64_t begin, int64_t end) {
  with_worker<bf16>(p, [&](auto&& worker) { worker.forward(begin, end); });
}

template <>
void lift_pool_backward<bf16>(const LiftPoolParams& p, int64_t begin, int64_t end) {
  with_worker<bf16>(p, [&](auto&& worker) { worker.backward(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
