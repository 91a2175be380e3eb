// Window attention with abstract tokens on the CPU: chunks to windows and heads. Compiled per
// instruction set, and for each direction and element type in a file of its own.
#pragma once

#include "cpu_backward_window.h"
#include "cpu_forward_window.h"

namespace hybrid {
namespace HYBRID_ISA {

// Defined for float, bf16 and f16 in abstract_token_attention_cpu_<direction>_<type>.cpp.
template <class T>
void attention_forward(const AbstractTokenAttentionParams& p, int64_t chunk_begin,
                       int64_t chunk_end);
template <class T>
void attention_backward(const AbstractTokenAttentionParams& p, int64_t chunk_begin,
                        int64_t chunk_end);

namespace {

// Every head of every window of a chunk; fetches what the next one will need.
template <class T, class Work>
void run_chunk(Work& work, const Params& p, const ChunkPlan& plan, int64_t chunk) {
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

template <class T>
void run_forward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  const ChunkPlan plan(p);
  ForwardWindow<T> work(p);
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) run_chunk<T>(work, p, plan, chunk);
}

inline int64_t sum_count(const Params& p) { return int64_t{kSumParts} * p.h * p.d; }

template <class T>
void run_backward(const Params& p, int64_t chunk_begin, int64_t chunk_end) {
  const ChunkPlan plan(p);
  BackwardWindow<T> work(p);
  auto* const sums = static_cast<Statistic<T>*>(p.workspace);
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk) {
    work.begin_chunk(sums ? sums + plan.part(chunk) * sum_count(p) : nullptr,
                     plan.first_head(chunk), plan.end_head(chunk));
    run_chunk<T>(work, p, plan, chunk);
  }
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
