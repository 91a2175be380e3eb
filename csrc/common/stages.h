// Stages of a CPU kernel, to be left out one at a time: bench/stages.py builds such variants, whose
// results are wrong, to see what each stage costs. Nothing is left out of an ordinary build.
#pragma once

#if !defined(HYBRID_LEFT_OUT)
#define HYBRID_LEFT_OUT none
#endif

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

enum class Stage {
  none,
  products,
  exponentials,
  packing,
  prefetch,
  memory,  // every window is the first one and stays in the caches
};

constexpr bool left_out(Stage stage) { return stage == Stage::HYBRID_LEFT_OUT; }

}  // namespace
}  // namespace hybrid
