// Atrous window attention on the CPU: chunks of windows to tiles. Compiled per instruction set.
#include <utility>

#include "cpu_backward_tile.h"
#include "cpu_double_tile.h"
#include "cpu_forward_tile.h"

namespace hybrid {
namespace HYBRID_ISA {
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
    next->locate(p, plan.window(plan.branch(of_chunk), window));
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

template <template <class, class> class Tile>
void launch(const AtrousAttentionParams& p, ChunkQueue& queue) {
#if defined(__AVX512BF16__)
  using Bf16 = Bf16Arith;
#else
  using Bf16 = FloatArith;
#endif
  switch (p.dtype) {
    case DType::f32:
      return run<Tile<FloatArith, float>>(p, queue);
    case DType::bf16:
      return run<Tile<Bf16, bf16>>(p, queue);
    case DType::f16:
      return run<Tile<FloatArith, f16>>(p, queue);
    case DType::f64:
      break;
  }
}

void forward(const AtrousAttentionParams& p, ChunkQueue& queue) {
  if (p.dtype == DType::f64) return run<DoubleForwardTile>(p, queue);
  launch<ForwardTile>(p, queue);
}

void backward(const AtrousAttentionParams& p, ChunkQueue& queue) {
  if (p.dtype == DType::f64) return run<DoubleBackwardTile>(p, queue);
  launch<BackwardTile>(p, queue);
}

int64_t chunks(const AtrousAttentionParams& p) { return ChunkPlan(p).chunks(); }

int64_t workspace_bytes(const AtrousAttentionParams& p) {
  if (!p.grad_bias) return 0;
  return chunks(p) * bias_offsets(p) * p.h * (p.dtype == DType::f64 ? 8 : 4);
}

// grad_bias of a branch is the sum over its chunks, in ascending order.
template <class Acc>
void sum_chunks(const AtrousAttentionParams& p) {
  const int64_t size = bias_offsets(p) * p.h, all = chunks(p);
  const Acc* partial = static_cast<const Acc*>(p.workspace);
  Acc* grad = static_cast<Acc*>(p.grad_bias);
  for (int64_t i = 0; i < size * p.n; ++i) grad[i] = partial[i];
  for (int64_t chunk = p.n; chunk < all; ++chunk)
    for (int64_t i = 0; i < size; ++i) grad[chunk % p.n * size + i] += partial[chunk * size + i];
}

void reduce_bias(const AtrousAttentionParams& p) {
  if (p.dtype == DType::f64)
    sum_chunks<double>(p);
  else
    sum_chunks<float>(p);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const AtrousAttentionCpu& cpu_table<AtrousAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr AtrousAttentionCpu table{chunks, workspace_bytes, forward, backward,
                                            reduce_bias};
  return table;
}

}  // namespace hybrid
