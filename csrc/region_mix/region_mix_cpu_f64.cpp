#include "backward_rows.h"
#include "forward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void region_mix_forward<double>(const RegionMixParams& p, int64_t begin, int64_t end) {
  run_forward<double>(p, begin, end);
}

template <>
void region_mix_backward<double>(const RegionMixParams& p, int64_t begin, int64_t end) {
  run_backward<double>(p, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
