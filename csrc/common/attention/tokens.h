// How attention ops describe tokens to their kernels. Plain C++.
#pragma once

#include "../types.h"

namespace hybrid {

// (B, tokens, h, width), last stride 1.
struct AttentionTokens {
  const void* data;
  int64_t stride[3];  // in elements, of images, tokens and heads
};

}  // namespace hybrid
