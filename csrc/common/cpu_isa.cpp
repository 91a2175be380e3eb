#include "cpu_isa.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace hybrid {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
Isa highest_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return Isa::baseline;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return Isa::avx2;
  return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
#else
  return Isa::baseline;
#endif
}

Isa highest_usable_isa() {
  int isa = static_cast<int>(highest_isa());
  while (!isa_built(static_cast<Isa>(isa))) --isa;  // the baseline always is
  return static_cast<Isa>(isa);
}

// The named set, or -1 where the name is unknown or the CPU or this library lacks it.
int usable_isa(const char* name) {
  for (int i = 0; i <= static_cast<int>(highest_isa()); ++i)
    if (isa_built(static_cast<Isa>(i)) && std::strcmp(name, kNames[i]) == 0) return i;
  return -1;
}

Isa initial_isa() {
  const char* wish = std::getenv("HYBRID_KERNELS_CPU_ISA");
  if (!wish || !*wish) return highest_usable_isa();
  const int isa = usable_isa(wish);
  if (isa >= 0) return static_cast<Isa>(isa);
  std::fprintf(stderr,
               "hybrid_kernels: HYBRID_KERNELS_CPU_ISA=%s: expected one of baseline, avx2, avx512, "
               "avx512_bf16 that this CPU and this build have; using %s.\n",
               wish, kNames[static_cast<int>(highest_usable_isa())]);
  return highest_usable_isa();
}

std::atomic<Isa>& isa_in_use() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa cpu_isa() { return isa_in_use().load(std::memory_order_relaxed); }

}  // namespace hybrid

extern "C" {

__attribute__((visibility("default"))) const char* hybrid_cpu_isa() {
  return hybrid::kNames[static_cast<int>(hybrid::cpu_isa())];
}

__attribute__((visibility("default"))) int hybrid_set_cpu_isa(const char* name) {
  const int isa = hybrid::usable_isa(name);
  if (isa < 0) return -1;
  hybrid::isa_in_use().store(static_cast<hybrid::Isa>(isa));
  return 0;
}
}
