// Backward: windows with their token in one tile, or cut into tiles.
#pragma once

#include "cuda_backward_split.cuh"
#include "cuda_backward_whole.cuh"

namespace hybrid {
namespace {

template <class G>
bool is_whole(const Params& p) {
  return 1 + p.P * p.P <= G::R;
}

}  // namespace

template <class T>
int64_t abstract_token_attention_workspace_bytes(const Params& p) {
  if (!p.grad_token && !p.grad_pad_kv) return 0;
  int64_t entries = 0;  // one per window and tile
  by_width<T>(p.d, [&](auto tiles) {
    using Tiles = decltype(tiles);
    const int rows = is_whole<typename Tiles::Forward>(p) ? Tiles::Forward::R : Tiles::Backward::R;
    entries = Plan(p, rows).blocks(p) / p.h;
    return 0;
  });
  return entries * sum_columns(p) * 4;
}

template <class T>
int abstract_token_attention_backward(const Params& p, void* stream) {
  return by_width<T>(p.d, [&](auto tiles) {
    using Tiles = decltype(tiles);
    return is_whole<typename Tiles::Forward>(p) ? launch_whole<typename Tiles::Forward>(p, stream)
                                                : launch_split<typename Tiles::Backward>(p, stream);
  });
}

}  // namespace hybrid
