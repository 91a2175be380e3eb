#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void dwconv_act_forward<bf16>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) { Worker<bf16>(p).forward<decltype(act)>(begin, end); });
}

template <>
void dwconv_act_backward<bf16>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) { Worker<bf16>(p).backward<decltype(act)>(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
