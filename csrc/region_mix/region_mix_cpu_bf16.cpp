#include "backward_rows.h"
#include "forward_rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template void region_mix_forward<bf16>(const RegionMixParams&, int64_t, int64_t);
template void region_mix_backward<bf16>(const RegionMixParams&, int64_t, int64_t);

}  // namespace HYBRID_ISA
}  // namespace hybrid
