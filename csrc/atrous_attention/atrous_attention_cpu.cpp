// Atrous window attention on the CPU: the table of one instruction set, and float64.
#include "cpu_bias_panels.h"
#include "cpu_double_tile.h"
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const AtrousAttentionParams& p, ChunkQueue& queue) {
  switch (p.dtype) {
    case DType::f32:
      return attention_forward<float>(p, queue);
    case DType::bf16:
      return attention_forward<bf16>(p, queue);
    case DType::f16:
      return attention_forward<f16>(p, queue);
    case DType::f64:
      return run<DoubleForwardTile>(p, queue);
  }
}

void backward(const AtrousAttentionParams& p, ChunkQueue& queue) {
  switch (p.dtype) {
    case DType::f32:
      return attention_backward<float>(p, queue);
    case DType::bf16:
      return attention_backward<bf16>(p, queue);
    case DType::f16:
      return attention_backward<f16>(p, queue);
    case DType::f64:
      return run<DoubleBackwardTile>(p, queue);
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
  static constexpr AtrousAttentionCpu table{chunks, workspace_bytes, forward, backward,
                                            reduce_bias};
  return table;
}

}  // namespace hybrid
