// Grids in the x dimension alone, for kernels that stride over their blocks: any number will do.
#pragma once

#include "device.h"

namespace hybrid {
namespace {

inline dim3 grid_of(int64_t blocks) {
  return dim3(static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff));
}

}  // namespace
}  // namespace hybrid
