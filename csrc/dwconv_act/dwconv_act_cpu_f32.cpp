#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void dwconv_act_forward<float>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) { Worker<float>(p).forward<decltype(act)>(begin, end); });
}

template <>
void dwconv_act_backward<float>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) { Worker<float>(p).backward<decltype(act)>(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
