// gated_fuse on the CPU: the table of kernels, and the sums over chunks. Compiled once per
// instruction set.
#include "fuse_chunks.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const GatedFuseParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32:
      return fuse_forward<float>(p, begin, end);
    case DType::f64:
      return fuse_forward<double>(p, begin, end);
    case DType::bf16:
      return fuse_forward<bf16>(p, begin, end);
    case DType::f16:
      return fuse_forward<f16>(p, begin, end);
  }
}

void backward(const GatedFuseParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::f32:
      return fuse_backward<float>(p, begin, end);
    case DType::f64:
      return fuse_backward<double>(p, begin, end);
    case DType::bf16:
      return fuse_backward<bf16>(p, begin, end);
    case DType::f16:
      return fuse_backward<f16>(p, begin, end);
  }
}

template <class T>
void reduce_sums(const GatedFuseParams& p) {
  using Scalar = typename Arithmetic<T>::Scalar;
  const Cut cut(p);
  const Workspace<T> w(p, cut);
  for (int k = 0; p.grad_weight && k < p.n; ++k) {
    const Scalar* sums = w.gate_sums(p, 0) + k * w.stride;
    sum_parts(sums, cut.chunks, w.gate, p.C, static_cast<Scalar*>(p.grad_weight) + k * p.C);
    sums += p.n * w.stride;
    sum_parts(sums, cut.chunks, w.gate, p.C, static_cast<Scalar*>(p.grad_bias) + k * p.C);
  }
  for (int64_t bk = 0; p.grad_scale && bk < p.B * p.n; ++bk) {
    Scalar* sums = w.scale_sums(p, cut, bk / p.n, 0) + bk % p.n * w.stride;
    Scalar* grad = static_cast<Scalar*>(p.grad_scale) + bk * p.scale_channels;
    if (p.scale_channels == p.C) {
      sum_parts(sums, cut.pieces, w.scale, p.C, grad);
    } else {
      sum_parts(sums, cut.pieces, w.scale, p.C, sums);
      sum_parts(sums, p.C, 1, 1, grad);
    }
  }
}

void reduce(const GatedFuseParams& p) {
  if (p.dtype == DType::f64)
    reduce_sums<double>(p);
  else
    reduce_sums<float>(p);
}

int64_t chunks(const GatedFuseParams& p) { return Cut(p).chunks; }

int64_t workspace_bytes(const GatedFuseParams& p) {
  const auto bytes = [&](auto w) {
    return (w.gate_total + w.scale_total) *
           static_cast<int64_t>(sizeof(typename decltype(w)::Scalar));
  };
  const Cut cut(p);
  return p.dtype == DType::f64 ? bytes(Workspace<double>(p, cut)) : bytes(Workspace<float>(p, cut));
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const GatedFuseCpu& cpu_table<GatedFuseCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr GatedFuseCpu table{chunks, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
