// Which code attends to data of which type.
#pragma once

#include <type_traits>

#include "cpu_double.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

#if defined(__AVX512BF16__)
using Bf16 = Bf16Arith;
#else
using Bf16 = FloatArith;
#endif

template <class T>
using ArithOf = std::conditional_t<std::is_same_v<T, bf16>, Bf16, FloatArith>;

template <class T>
using ForwardKernel =
    std::conditional_t<std::is_same_v<T, double>, DoubleForward, ForwardPanels<ArithOf<T>, T>>;
template <class T>
using BackwardKernel =
    std::conditional_t<std::is_same_v<T, double>, DoubleBackward, BackwardTiles<ArithOf<T>, T>>;

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
