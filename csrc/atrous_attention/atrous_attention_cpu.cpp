// Atrous window attention on the CPU: chunks of windows to tiles. Compiled once per instruction set.
#include "cpu_scalar.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

int64_t bias_offsets(const AtrousAttentionParams& p) {
  return int64_t{2 * p.P - 1} * (2 * p.P - 1);
}

template <class Tile, bool kBackward>
void run(const AtrousAttentionParams& p, int64_t chunk_begin, int64_t chunk_end) {
  const ChunkPlan plan(p);
  Tile tile(p);
  Tokens tokens;
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    tile.begin_chunk(chunk);
    for (int64_t w = plan.first_window(chunk); w < plan.end_window(chunk); ++w) {
      tokens.locate(p, plan.window(plan.branch(chunk), w));
      for (int head = 0; head < p.h; ++head)
        if (kBackward)
          tile.backward(tokens, head);
        else
          tile.forward(tokens, head);
    }
    if (kBackward) tile.end_chunk(chunk);
  }
}

template <bool kBackward>
void launch(const AtrousAttentionParams& p, int64_t chunk_begin, int64_t chunk_end) {
  switch (p.dtype) {
    case DType::f32:
      return run<ScalarTile<float, float>, kBackward>(p, chunk_begin, chunk_end);
    case DType::f64:
      return run<ScalarTile<double, double>, kBackward>(p, chunk_begin, chunk_end);
    case DType::bf16:
      return run<ScalarTile<bf16, float>, kBackward>(p, chunk_begin, chunk_end);
    case DType::f16:
      return run<ScalarTile<f16, float>, kBackward>(p, chunk_begin, chunk_end);
  }
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
  static constexpr AtrousAttentionCpu table{chunks, workspace_bytes, launch<false>, launch<true>,
                                            reduce_bias};
  return table;
}

}  // namespace hybrid
