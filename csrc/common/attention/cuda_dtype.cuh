// From a data type known at run time to one known to the compiler.
#pragma once

#include "../device.h"
#include "../types.h"

namespace hybrid {
namespace {

// call(a value of the data type), an int or int64_t; cudaErrorInvalidValue for float64.
template <class Call>
auto by_dtype(DType dtype, const Call& call) -> decltype(call(float())) {
  constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue
  switch (dtype) {
    case DType::f32:
      return call(float());
    case DType::bf16:
      return call(__nv_bfloat16());
    case DType::f16:
      return call(__half());
    default:
      return kInvalidValue;
  }
}

}  // namespace
}  // namespace hybrid
