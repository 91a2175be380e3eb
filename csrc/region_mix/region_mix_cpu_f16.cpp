#include "mix_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void region_mix_forward<f16>(const RegionMixParams& p, int64_t begin, int64_t end) {
  with_worker<f16>(p, [&](auto&& worker) { worker.forward(begin, end); });
}

template <>
void region_mix_backward<f16>(const RegionMixParams& p, int64_t begin, int64_t end) {
  with_worker<f16>(p, [&](auto&& worker) { worker.backward(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
