#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void centred_dwconv<f16>(const CentredDwconvParams& p, Pass pass, int64_t begin, int64_t end) {
  Worker<f16>(p).run(pass, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
