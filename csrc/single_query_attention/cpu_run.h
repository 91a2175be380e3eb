// Single-query attention on the CPU: blocks of tokens. Compiled per instruction set, and for each
// element type in a file of its own.
#pragma once

#include "cpu_block.h"

namespace hybrid {
namespace HYBRID_ISA {

// Defined for float, bf16 and f16 in single_query_attention_cpu_<type>.cpp.
template <class T>
void attention_forward(const SingleQueryAttentionParams& p, int64_t begin, int64_t end);
template <class T>
void attention_backward(const SingleQueryAttentionParams& p, int64_t begin, int64_t end);

namespace {

template <class T, class Arith>
void run_forward(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  TokenBlock<T, Arith> tokens(p);
  for (int64_t block = begin; block < end; ++block) tokens.forward(block);
}

template <class T, class Arith>
void run_backward(const SingleQueryAttentionParams& p, int64_t begin, int64_t end) {
  TokenBlock<T, Arith> tokens(p);
  for (int64_t block = begin; block < end; ++block) tokens.backward(block);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
