// Atrous window attention on the CPU: chunks of windows to tiles. Compiled per instruction set, and
// for each element type in a file of its own.
#pragma once

#include <utility>

#include "../common/stages.h"
#include "tokens.h"

namespace hybrid {
namespace HYBRID_ISA {

// Defined for float, bf16 and f16 in atrous_attention_cpu_<type>.cpp.
template <class T>
void attention_forward(const AtrousAttentionParams& p, ChunkQueue& queue);
template <class T>
void attention_backward(const AtrousAttentionParams& p, ChunkQueue& queue);

namespace {

// Every window and head of the chunks that are left; a tile is told the next window as well.
template <class Tile>
void run(const AtrousAttentionParams& p, ChunkQueue& queue) {
  int64_t chunk = take(queue);
  if (chunk >= queue.end) return;
  const ChunkPlan plan(p);
  Tile tile(p);
  Tokens tokens[2];
  Tokens *now = &tokens[0], *next = &tokens[1];
  const auto locate_next = [&](int64_t of_chunk, int64_t window) {
    if (of_chunk >= queue.end || window >= plan.end_window(of_chunk)) return;
    next->locate(p, plan.window(plan.branch(of_chunk), left_out(Stage::memory) ? 0 : window));
  };
  while (chunk < queue.end) {
    const int64_t begin = plan.first_window(chunk), end = plan.end_window(chunk);
    const int64_t following = take(queue);
    locate_next(chunk, begin);
    tile.begin_chunk();
    for (int64_t w = begin; w < end; ++w) {
      std::swap(now, next);
      w + 1 < end ? locate_next(chunk, w + 1)
                  : locate_next(following, plan.first_window(following));
      for (int head = 0; head < p.h; ++head) tile(*now, head, *next);
    }
    tile.end_chunk(chunk);
    chunk = following;
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
