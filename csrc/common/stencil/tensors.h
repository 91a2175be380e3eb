// What every stencil's <op>.cpp needs: checks of maps and their parameters, and torch tensors as
// the maps of a parameter struct.
#pragma once

#include <deque>
#include <string>
#include <tuple>

#include "../activation.h"
#include "../cpu_isa.h"
#include "../tensors.h"
#include "map.h"

namespace hybrid {

// A tensor that may be None.
using Parameter = std::optional<Tensor>;

inline void check_map(const char* op, const char* name, const Tensor& x) {
  check(x.dim() == 4, op, ": ", name, " has shape ", shape_text(x),
        "; expected 4 dimensions: (B, H, W, C)");
  check(x.size(1) > 0 && x.size(2) > 0, op, ": ", name, " has shape ", shape_text(x),
        "; expected at least one pixel");
}

// A map of the shape, dtype and device of x, which the op may call otherwise.
inline void check_like(const char* op, const char* name, const Tensor& t, const Tensor& x,
                       const char* name_of_x = "x") {
  const std::string meaning = std::string("(B, H, W, C), as ") + name_of_x;
  check_shape(op, name, t, shape_of(x), meaning.c_str());
  check_dtype(op, name, t, x.scalar_type());
  check_same_device(op, name, t, name_of_x, x);
}

// A parameter: float32, or float64 beside float64.
inline void check_parameter(const char* op, const char* name, const Tensor& t,
                            const std::vector<int64_t>& shape, const char* meaning, const Tensor& x,
                            const char* name_of_x = "x") {
  check_shape(op, name, t, shape, meaning);
  check_dtype(op, name, t, accumulate_type(x.scalar_type()));
  check_same_device(op, name, t, name_of_x, x);
}

// A folded norm (C,): both or neither.
inline void check_affine(const char* op, const Parameter& scale, const Parameter& shift, int64_t C,
                         const Tensor& x, const char* name_of_x = "x") {
  check(scale.has_value() == shift.has_value(), op, ": scale and shift must both be given or both",
        " be None; ", scale ? "shift" : "scale", " is None");
  if (scale) check_parameter(op, "scale", *scale, {C}, "(C,)", x, name_of_x);
  if (shift) check_parameter(op, "shift", *shift, {C}, "(C,)", x, name_of_x);
}

inline Activation activation_of(const char* op, const std::string& act) {
  std::string names;
  for (int32_t i = 0; i < static_cast<int32_t>(std::size(kActivationNames)); ++i) {
    if (act == kActivationNames[i]) return static_cast<Activation>(i);
    names += std::string(i ? ", " : "") + kActivationNames[i];
  }
  check(false, op, ": act = '", act, "'; expected one of ", names);
  return Activation::none;
}

inline bool is_empty(const Tensor& t) { return t.numel() == 0; }

// The tensors that a kernel reads, kept alive until it returns.
class Inputs {
 public:
  InputMap map(const Tensor& any) {
    const Tensor& t = kept_.emplace_back(unit_last_stride(any));
    InputMap map{t.const_data_ptr(), {}};
    copy_strides(t, map.stride);
    return map;
  }

  const void* parameter(const Tensor& any) {
    return kept_.emplace_back(as_contiguous(any)).const_data_ptr();
  }
  const void* parameter(const Parameter& any) { return any ? parameter(*any) : nullptr; }

 private:
  std::deque<Tensor> kept_;
};

// A contiguous map.
inline OutputMap output_map(const Tensor& t) {
  return {t.mutable_data_ptr(), t.size(1) * t.size(2) * t.size(3), t.size(2), t.size(3)};
}

inline Tensor new_map_gradient(const Tensor& x, bool needed) {
  return new_gradient(x, needed, shape_of(x), x.scalar_type());
}
inline Tensor new_parameter_gradient(const Tensor& x, bool needed,
                                     const std::vector<int64_t>& shape) {
  return new_gradient(x, needed, shape, accumulate_type(x.scalar_type()));
}

// Gradients of maps without a pixel.
template <class... Tensors>
void zero_all(std::tuple<Tensors...>& gradients) {
  std::apply([](auto&... grad) { (torch::stable::zero_(grad), ...); }, gradients);
}

// Jobs of a forward: where it is cut otherwise than the backward, the table of kernels has them.
template <class Kernels, class Params>
auto forward_jobs(const Kernels& kernels, const Params& p, int)
    -> decltype(kernels.forward_jobs(p)) {
  return kernels.forward_jobs(p);
}
template <class Kernels, class Params>
int64_t forward_jobs(const Kernels& kernels, const Params& p, long) {
  return kernels.jobs(p);
}

// Kernels whose work is cut into jobs by the shape, and whose backward leaves sums to be reduced.
template <class Kernels, class Params>
void run_forward(const Params& p) {
  const Kernels& kernels = cpu_table<Kernels>();
  torch::stable::parallel_for(0, forward_jobs(kernels, p, 0), 1,
                              [&](int64_t begin, int64_t end) { kernels.forward(p, begin, end); });
}

template <class Kernels, class Params>
void run_backward(Params& p, const Tensor& like) {
  const Kernels& kernels = cpu_table<Kernels>();
  const Tensor workspace = new_workspace(like, kernels.workspace_bytes(p), p.workspace);
  torch::stable::parallel_for(0, kernels.jobs(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.backward(p, begin, end); });
  kernels.reduce(p);
}

}  // namespace hybrid
