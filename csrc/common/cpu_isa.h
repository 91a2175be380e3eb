// Which instruction set the CPU kernels run with.
//
// An op's <op>_cpu.cpp is compiled once per instruction set, with -DHYBRID_ISA=<name>, and defines
// its table of functions for that one set:
//
//   template <>
//   const FooCpu& cpu_table<FooCpu, Isa::HYBRID_ISA>() {
//     static constexpr FooCpu table{...};
//     return table;
//   }
//
// The caller says cpu_table<FooCpu>() and gets the table of the set in use. Nothing else may leave
// such an object: a weak symbol (an inline function, a template) compiled with AVX-512 could be the
// copy that the linker keeps for everybody. So all code behind a table has internal linkage.
#pragma once

// The sets that this library has, one bit each: build.py's HYBRID_CPU_ISAS.
#if !defined(HYBRID_BUILT_ISAS)
#if defined(__x86_64__)
#define HYBRID_BUILT_ISAS 0b1111
#else
#define HYBRID_BUILT_ISAS 0b0001
#endif
#endif

namespace hybrid {

// In ascending order: each set includes the ones before it.
enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

constexpr bool isa_built(Isa isa) { return HYBRID_BUILT_ISAS >> static_cast<int>(isa) & 1; }

// The highest set that was built, that this CPU has and that HYBRID_KERNELS_CPU_ISA allows.
Isa cpu_isa();

// An op's table for one instruction set; Table is the op's own struct of function pointers.
template <class Table, Isa isa>
const Table& cpu_table();

// The table of the instruction set in use, which is one of those built.
template <class Table>
const Table& cpu_table() {
  switch (cpu_isa()) {
    case Isa::avx512_bf16:
      if constexpr (isa_built(Isa::avx512_bf16)) return cpu_table<Table, Isa::avx512_bf16>();
      break;
    case Isa::avx512:
      if constexpr (isa_built(Isa::avx512)) return cpu_table<Table, Isa::avx512>();
      break;
    case Isa::avx2:
      if constexpr (isa_built(Isa::avx2)) return cpu_table<Table, Isa::avx2>();
      break;
    case Isa::baseline:
      break;
  }
  return cpu_table<Table, Isa::baseline>();
}

}  // namespace hybrid

// For tests and benchmarks, by ctypes.
extern "C" {
// "baseline", "avx2", "avx512" or "avx512_bf16".
const char* hybrid_cpu_isa();
// Uses the named set from now on; 0, or -1 and no change where the CPU or the library
// lacks it or the name is unknown. Not while an op runs.
int hybrid_set_cpu_isa(const char* name);
}
