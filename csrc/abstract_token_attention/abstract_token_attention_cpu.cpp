// Window attention with abstract tokens on the CPU: the table of one instruction set, and float64.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

int64_t chunks(const Params& p) { return ChunkPlan(p).chunks(); }

void forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  switch (p.dtype) {
    case DType::f32:
      return attention_forward<float>(p, chunk_begin, chunk_end);
    case DType::bf16:
      return attention_forward<bf16>(p, chunk_begin, chunk_end);
    case DType::f16:
      return attention_forward<f16>(p, chunk_begin, chunk_end);
    case DType::f64:
      return run_forward<double>(p, chunk_begin, chunk_end);
  }
}

bool wants_sums(const Params& p) { return p.grad_token || p.grad_pad_kv; }

int64_t workspace_bytes(const Params& p) {
  if (!wants_sums(p)) return 0;
  return ChunkPlan(p).parts() * sum_count(p) * (p.dtype == DType::f64 ? 8 : 4);
}

void backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  switch (p.dtype) {
    case DType::f32:
      return attention_backward<float>(p, chunk_begin, chunk_end);
    case DType::bf16:
      return attention_backward<bf16>(p, chunk_begin, chunk_end);
    case DType::f16:
      return attention_backward<f16>(p, chunk_begin, chunk_end);
    case DType::f64:
      return run_backward<double>(p, chunk_begin, chunk_end);
  }
}

// The sum over the parts, in ascending order.
template <class Sum>
void sum_parts(const Params& p, int first, int count, void* grad) {
  if (!grad) return;
  const Sum* from = static_cast<const Sum*>(p.workspace) + int64_t{first} * p.h * p.d;
  Sum* to = static_cast<Sum*>(grad);
  const int64_t size = int64_t{count} * p.h * p.d, parts = ChunkPlan(p).parts();
  for (int64_t i = 0; i < size; ++i) to[i] = from[i];
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) to[i] += from[part * sum_count(p) + i];
}

void reduce(const Params& p) {
  const auto sum = p.dtype == DType::f64 ? sum_parts<double> : sum_parts<float>;
  sum(p, 0, 3, p.grad_token);
  sum(p, 3, 2, p.grad_pad_kv);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const AbstractTokenAttentionCpu& cpu_table<AbstractTokenAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr AbstractTokenAttentionCpu table{chunks, forward, workspace_bytes, backward,
                                                   reduce};
  return table;
}

}  // namespace hybrid
