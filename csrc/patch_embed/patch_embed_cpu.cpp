// patch_embed on the CPU: the table of kernels. Compiled once per instruction set.
#include "pool_patches.h"
#include "spread_patches.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = PatchEmbedParams;

int64_t jobs(const Params& p) { return PatchCut(p).parts; }

// The partial sums of the weight's gradient: `width` rows for every part.
template <class T>
PartSums<T> sums_of(const Params& p) {
  const int64_t rows = p.grad_weight ? p.width : 0;
  return PartSums<T>(jobs(p), rows, whole_vectors<T>(p.C), p.workspace);
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    const PatchCut cut(p);
    PatchPooler<decltype(type)> pooler(p, cut.group);
    cut.for_groups(begin, end, [&](int64_t row, int64_t rows) { pooler.run(row, rows); });
  });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const PatchCut cut(p);
    const PartSums<T> sums = sums_of<T>(p);
    PatchSpreader<T> spreader(p, cut.group);
    for (int64_t part = begin; part < end; ++part) {
      auto* of_part = p.grad_weight ? sums.at(part) : nullptr;
      sums.clear(part);
      cut.for_groups(part, part + 1,
                     [&](int64_t row, int64_t rows) { spreader.run(row, rows, of_part); });
    }
  });
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto type) { return sums_of<decltype(type)>(p).bytes(); });
}

void reduce(const Params& p) {
  for_dtype(p.dtype,
            [&](auto type) { sums_of<decltype(type)>(p).reduce(0, p.width, p.C, p.grad_weight); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const PatchEmbedCpu& cpu_table<PatchEmbedCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr PatchEmbedCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
