// patch_embed on the CPU: the table of kernels. Compiled once per instruction set.
#include "patch_rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = PatchEmbedParams;

int64_t chunks(const Params& p) { return ceil_div(p.B * p.rows, chunk_rows(p)); }

// body(image, row) for all rows of a chunk.
template <class Body>
void for_rows(const Params& p, int64_t chunk, const Body& body) {
  const int64_t count = chunk_rows(p), all = p.B * p.rows, end = (chunk + 1) * count;
  for (int64_t i = chunk * count; i < end && i < all; ++i) body(i / p.rows, i % p.rows);
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    PatchRows<decltype(type)> rows(p);
    for (int64_t chunk = begin; chunk < end; ++chunk)
      for_rows(p, chunk, [&](int64_t image, int64_t row) { rows.forward(image, row); });
  });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    using Rows = PatchRows<decltype(type)>;
    Rows rows(p);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      auto* sums = static_cast<typename Rows::Scalar*>(p.workspace);
      if (sums) sums += chunk * Rows::sums(p);
      if (sums) zero(sums, Rows::sums(p));
      for_rows(p, chunk, [&](int64_t image, int64_t row) { rows.backward(image, row, sums); });
    }
  });
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto type) {
    using Rows = PatchRows<decltype(type)>;
    return chunks(p) * Rows::sums(p) * int64_t{sizeof(typename Rows::Scalar)};
  });
}

void reduce(const Params& p) {
  for_dtype(p.dtype, [&](auto type) {
    using Rows = PatchRows<decltype(type)>;
    using Scalar = typename Rows::Scalar;
    const int64_t stride = Rows::sums(p), row = whole_vectors<decltype(type)>(p.C);
    for (int64_t o = 0; o < p.width && stride; ++o)
      sum_parts(static_cast<const Scalar*>(p.workspace) + o * row, chunks(p), stride, p.C,
                static_cast<Scalar*>(p.grad_weight) + o * p.C);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const PatchEmbedCpu& cpu_table<PatchEmbedCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr PatchEmbedCpu table{chunks, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
