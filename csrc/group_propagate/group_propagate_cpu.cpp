// group_propagate on the CPU: the table of kernels, and the sums over parts. Compiled once per
// instruction set.
#include "rows.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { group_propagate_forward<decltype(x)>(p, begin, end); });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { group_propagate_backward<decltype(x)>(p, begin, end); });
}

int64_t jobs(const Params& p) {
  return for_dtype(p.dtype, [&](auto x) { return cut_of<decltype(x)>(p).jobs; });
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype,
                   [&](auto x) { return Sums<decltype(x)>(p, cut_of<decltype(x)>(p)).bytes(p.B); });
}

template <class T>
void reduce_branch(const Params& p, const Sums<T>& sums, int branch) {
  const PropagateBranch& to = p.branch[branch];
  const int64_t first = first_term(branch), taps = taps_of(branch);
  sums.parameters.reduce(first, taps, p.C, to.grad_weight);
  sums.parameters.reduce(first + taps, 1, p.C, to.grad_bias);
  for (int64_t image = 0; to.grad_kv && image < p.B; ++image)
    FewKeys<T>::reduce(p.G, p.h, p.d, sums.of_tokens(image, 0, branch), sums.bands, 2 * sums.tokens,
                       static_cast<T*>(to.grad_kv) + image * p.G * 2 * p.C);
}

void reduce(const Params& p) {
  for_dtype(p.dtype, [&](auto x) {
    const Sums<decltype(x)> sums(p, cut_of<decltype(x)>(p));
    for (int branch = 0; branch < 2; ++branch) reduce_branch(p, sums, branch);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const GroupPropagateCpu& cpu_table<GroupPropagateCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr GroupPropagateCpu table{jobs, workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
