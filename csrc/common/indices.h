// Indices that a user hands over, checked before a kernel follows them.
#pragma once

#include "tensors.h"

namespace hybrid {

// (B, n) indices of tokens as dense int64. On the CPU each must be from 0 to tokens - 1; what lies
// on a GPU is not looked at, because it would have to be waited for.
inline Tensor checked_indices(const char* op, const char* name, const Tensor& index,
                              const char* other_name, const Tensor& other, int64_t tokens) {
  const ScalarType type = index.scalar_type();
  check(type == ScalarType::Int || type == ScalarType::Long, op, ": ", name,
        " holds no int32 or int64 indices; convert it with .to(torch.int64)");
  check_same_device(op, name, index, other_name, other);
  const Tensor dense = torch::stable::contiguous(torch::stable::to(index, ScalarType::Long));
  const int64_t* values = static_cast<const int64_t*>(dense.const_data_ptr());
  for (int64_t i = 0; dense.is_cpu() && i < dense.numel(); ++i)
    check(values[i] >= 0 && values[i] < tokens, op, ": ", name, " holds index ", values[i],
          "; expected 0 to ", tokens - 1);
  return dense;
}

}  // namespace hybrid
