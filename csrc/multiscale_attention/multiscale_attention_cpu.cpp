// Multiscale attention on the CPU: the table of one instruction set, and float64.
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

int64_t forward_chunks(const Params& p) { return forward_cut(p).chunks(); }

void launch_forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
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

int64_t backward_chunks(const Params& p) { return backward_cut(p).chunks(); }

void launch_backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
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

int64_t workspace_bytes(const Params& p) {
  const Cut cut = backward_cut(p);
  return p.grad_q && cut.parts > 1 ? cut.chunks() * p.N * p.d * int64_t{sizeof(float)} : 0;
}

// grad_q is the sum over its parts, in ascending order.
template <class T>
void sum_parts(const Params& p, int64_t begin, int64_t end) {
  const int64_t parts = backward_cut(p).parts, size = p.N * p.d;
  for (int64_t pair = begin; pair < end; ++pair) {
    float* sums = static_cast<float*>(p.workspace) + pair * parts * size;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
    T* grad = static_cast<T*>(p.grad_q) + (pair / p.h * p.N * p.h + pair % p.h) * p.d;
    for (int64_t n = 0; n < p.N; ++n)
      for (int c = 0; c < p.d; ++c) grad[n * p.h * p.d + c] = from_float<T>(sums[n * p.d + c]);
  }
}

void reduce(const Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) sum_parts<float>(p, begin, end);
  if (p.dtype == DType::bf16) sum_parts<bf16>(p, begin, end);
  if (p.dtype == DType::f16) sum_parts<f16>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const MultiscaleAttentionCpu& cpu_table<MultiscaleAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr MultiscaleAttentionCpu table{forward_chunks,  launch_forward,  backward_chunks,
                                                workspace_bytes, launch_backward, reduce,
                                                fits_cache};
  return table;
}

}  // namespace hybrid
