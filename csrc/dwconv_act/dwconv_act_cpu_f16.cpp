#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void dwconv_act_forward<f16>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) {
    using Act = decltype(act);
    walks<f16>(p) ? forward_walks<f16, Act>(p, begin, end)
                  : Worker<f16>(p).forward<Act>(begin, end);
  });
}

template <>
void dwconv_act_backward<f16>(const DwconvActParams& p, int64_t begin, int64_t end) {
  for_activation(p.act, [&](auto act) { Worker<f16>(p).backward<decltype(act)>(begin, end); });
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
