// The n tokens of every image whose channels have the largest mean: parameters and kernels. Plain
// C++.
//
// A mean becomes an unsigned key that orders as means do, NaN above all. A search bit by bit finds
// the n-th largest key of an image, and one more walk over the keys emits, in ascending order,
// every token with a larger one and, of those with that very key, the first.
#pragma once

#include "../common/cpu_isa.h"
#include "../common/types.h"

namespace hybrid {

struct ContextTopkParams {
  DType dtype;
  int64_t B, N, C, n;  // images, tokens, channels, tokens to choose; B is not zero in a launch

  const void* u;      // (B, N, C), last stride 1
  int64_t stride[2];  // in elements, of images and tokens
  int32_t* index;     // (B, n) contiguous
  void* keys;         // (B, N): uint32_t, for float64 uint64_t
};

constexpr int64_t kTopkTokens = 256;  // of a chunk

// Chunks of an image.
inline int64_t topk_pieces(const ContextTopkParams& p) { return ceil_div(p.N, kTopkTokens); }

// CPU kernels. One table per instruction set.
struct ContextTopkCpu {
  // u -> keys, on B * topk_pieces chunks of tokens.
  void (*make_keys)(const ContextTopkParams&, int64_t chunk_begin, int64_t chunk_end);
  // keys -> index, image by image.
  void (*select)(const ContextTopkParams&, int64_t image_begin, int64_t image_end);
};

}  // namespace hybrid
