#include "backward_rows.h"
#include "forward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void region_mix_forward<float>(const RegionMixParams& p, int64_t begin, int64_t end) {
  run_forward<float>(p, begin, end);
}

template <>
void region_mix_backward<float>(const RegionMixParams& p, int64_t begin, int64_t end) {
  run_backward<float>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
