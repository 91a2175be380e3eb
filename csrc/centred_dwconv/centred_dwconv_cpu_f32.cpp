#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {

template <>
void centred_dwconv<float>(const CentredDwconvParams& p, Pass pass, int64_t begin, int64_t end) {
  Worker<float>(p).run(pass, begin, end);
}

}  // namespace HYBRID_ISA
}  // namespace hybrid
