// Window attention with abstract tokens on the CPU: chunks to windows and heads. Compiled per
// instruction set.
#include "cpu_backward_window.h"
#include "cpu_forward_window.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Every head of every window of a chunk; fetches what the next one will need.
template <class T, class Work>
void run(Work& work, const Params& p, const ChunkPlan& plan, int64_t chunk) {
  const int first = plan.first_head(chunk), end = plan.end_head(chunk);
  for (int64_t number = plan.first_window(chunk); number < plan.end_window(chunk); ++number) {
    const Window window(p, number);
    const bool is_last = number + 1 == plan.end_window(chunk);
    const Window next(p, is_last ? number : number + 1);
    for (int head = first; head < end; ++head) {
      work.begin(window, head);
      if constexpr (!std::is_same_v<T, double>)
        head + 1 < end ? work.prefetch(window, head + 1) : work.prefetch(next, first);
      work.run(window, head);
    }
  }
}

int64_t chunks(const Params& p) { return ChunkPlan(p).chunks(); }

void forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  by_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const ChunkPlan plan(p);
    ForwardWindow<T> work(p);
    for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) run<T>(work, p, plan, chunk);
  });
}

bool wants_sums(const Params& p) { return p.grad_token || p.grad_pad_kv; }
int64_t sum_count(const Params& p) { return int64_t{kSumParts} * p.h * p.d; }

int64_t workspace_bytes(const Params& p) {
  if (!wants_sums(p)) return 0;
  return ChunkPlan(p).parts() * sum_count(p) * (p.dtype == DType::f64 ? 8 : 4);
}

void backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  by_element(p.dtype, [&](auto element) {
    using T = decltype(element);
    const ChunkPlan plan(p);
    BackwardWindow<T> work(p);
    auto* const sums = static_cast<Statistic<T>*>(p.workspace);
    for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
      work.begin_chunk(sums ? sums + plan.part(chunk) * sum_count(p) : nullptr,
                       plan.first_head(chunk), plan.end_head(chunk));
      run<T>(work, p, plan, chunk);
    }
  });
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
