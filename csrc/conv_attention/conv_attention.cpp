// hybrid::conv_attention: schema, argument checks, tensors -> parameter struct, registration.
#include "conv_attention.h"

#include <cmath>
#include <tuple>

#include "../common/launch.h"
#include "../common/stencil/tensors.h"

STABLE_TORCH_LIBRARY_FRAGMENT(hybrid, m) {
  m.def(
      "conv_attention(Tensor v, Tensor logits, float scale, int kernel, int stride, int padding)"
      " -> Tensor");
  m.def(
      "conv_attention_backward(Tensor grad_out, Tensor v, Tensor logits, float scale, int kernel,"
      " int stride, int padding, bool need_v, bool need_logits)"
      " -> (Tensor grad_v, Tensor grad_logits)");
}

namespace hybrid {
namespace {

constexpr const char* kOp = "conv_attention";

struct Arguments {
  const Tensor &v, &logits;
  double scale;
  int64_t kernel, stride, padding;
};

void check_geometry(const Arguments& a) {
  check(a.kernel >= 1 && a.kernel <= kMaxConvKernel, kOp, ": kernel = ", a.kernel,
        "; expected 1 to ", kMaxConvKernel);
  check(a.stride >= 1, kOp, ": stride = ", a.stride, "; expected 1 or more");
  check(a.padding >= 0 && a.padding < a.kernel, kOp, ": padding = ", a.padding,
        "; expected 0 to kernel - 1 = ", a.kernel - 1);
  check(std::isfinite(a.scale), kOp, ": scale = ", a.scale, "; expected a finite number");
}

int64_t windows_along(int64_t size, const Arguments& a) {
  const int64_t room = size + 2 * a.padding - a.kernel;
  return room < 0 ? 0 : room / a.stride + 1;
}

ConvAttentionParams checked_params(const Arguments& a) {
  const Tensor &v = a.v, &logits = a.logits;
  check(v.dim() == 4 && v.size(1) >= 1 && v.size(2) >= 1 && v.size(3) >= 1, kOp, ": v has shape ",
        shape_text(v), "; expected (B, H, W, C) with H, W and C at least 1");
  ConvAttentionParams p{};
  p.dtype = dtype_of(kOp, "v", v);
  check_geometry(a);
  p.B = v.size(0);
  p.H = v.size(1);
  p.W = v.size(2);
  p.C = v.size(3);
  p.H2 = windows_along(p.H, a);
  p.W2 = windows_along(p.W, a);
  p.kernel = static_cast<int32_t>(a.kernel);
  // A larger stride than the map means one window: kernels need not know how much larger.
  const int64_t largest = (p.H > p.W ? p.H : p.W) + 2 * a.padding;
  p.stride = static_cast<int32_t>(a.stride < largest ? a.stride : largest);
  p.padding = static_cast<int32_t>(a.padding);
  p.scale = a.scale;
  check(p.H2 >= 1 && p.W2 >= 1, kOp, ": v is a map of ", p.H, " x ", p.W, " pixels, which with ",
        "padding ", a.padding, " holds no window of kernel ", a.kernel, "; use more padding");
  const int64_t heads = logits.dim() == 6 ? logits.size(3) : 1, slots = a.kernel * a.kernel;
  check_shape(kOp, "logits", logits, {p.B, p.H2, p.W2, heads, slots, slots},
              "(B, H2, W2, heads, kernel^2, kernel^2)");
  check(heads >= 1 && p.C % heads == 0, kOp, ": logits has ", heads,
        " heads; expected a divisor of the ", p.C, " channels of v");
  check_dtype(kOp, "logits", logits, v.scalar_type());
  check_same_device(kOp, "logits", logits, "v", v);
  p.h = static_cast<int32_t>(heads);
  p.d = static_cast<int32_t>(p.C / heads);
  return p;
}

void add_inputs(ConvAttentionParams& p, const Arguments& a, Inputs& inputs) {
  p.v = inputs.map(a.v);
  p.logits = inputs.parameter(a.logits);
}

template <class Launch>
Tensor forward(const Arguments& a, const Launch& launch) {
  ConvAttentionParams p = checked_params(a);
  Tensor y = empty_like_type(a.v, {p.B, p.H, p.W, p.C}, a.v.scalar_type());
  if (p.B == 0) return y;
  Inputs inputs;
  add_inputs(p, a, inputs);
  p.y = y.mutable_data_ptr();
  launch(p);
  return y;
}

template <class Launch>
std::tuple<Tensor, Tensor> backward(const Arguments& a, const Tensor& grad_out, bool need_v,
                                    bool need_logits, const Launch& launch) {
  ConvAttentionParams p = checked_params(a);
  check_shape(kOp, "grad_out", grad_out, {p.B, p.H, p.W, p.C}, "(B, H, W, C), as v");
  check_dtype(kOp, "grad_out", grad_out, a.v.scalar_type());
  check_same_device(kOp, "grad_out", grad_out, "v", a.v);
  Tensor grad_v = new_gradient(a.v, need_v, p.grad_v);
  Tensor grad_logits = new_gradient(a.logits, need_logits, p.grad_logits);
  if (!p.grad_v && !p.grad_logits) return {grad_v, grad_logits};
  Inputs inputs;
  add_inputs(p, a, inputs);
  p.grad_out = inputs.map(grad_out);
  launch(p);
  return {grad_v, grad_logits};
}

#if !defined(HYBRID_HOST_EMULATOR)

void launch_cpu(const ConvAttentionParams& p) {
  const auto& kernels = cpu_table<ConvAttentionCpu>();
  torch::stable::parallel_for(0, kernels.chunks(p), 1,
                              [&](int64_t begin, int64_t end) { kernels.compute(p, begin, end); });
}

Tensor forward_cpu(Tensor v, Tensor logits, double scale, int64_t kernel, int64_t stride,
                   int64_t padding) {
  return forward({v, logits, scale, kernel, stride, padding}, launch_cpu);
}

std::tuple<Tensor, Tensor> backward_cpu(Tensor grad_out, Tensor v, Tensor logits, double scale,
                                        int64_t kernel, int64_t stride, int64_t padding,
                                        bool need_v, bool need_logits) {
  return backward({v, logits, scale, kernel, stride, padding}, grad_out, need_v, need_logits,
                  launch_cpu);
}

#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)

Tensor forward_cuda(Tensor v, Tensor logits, double scale, int64_t kernel, int64_t stride,
                    int64_t padding) {
  check_cuda_dtype(kOp, "v", v);
  return forward({v, logits, scale, kernel, stride, padding}, [&](const ConvAttentionParams& p) {
    launch_on_device_of(kOp, v,
                        [&](void* stream) { return hk_conv_attention_forward(&p, stream); });
  });
}

std::tuple<Tensor, Tensor> backward_cuda(Tensor grad_out, Tensor v, Tensor logits, double scale,
                                         int64_t kernel, int64_t stride, int64_t padding,
                                         bool need_v, bool need_logits) {
  check_cuda_dtype(kOp, "v", v);
  return backward(
      {v, logits, scale, kernel, stride, padding}, grad_out, need_v, need_logits,
      [&](ConvAttentionParams p) {
        const int64_t rows = p.B * p.H2 * p.W2 * p.h * p.kernel * p.kernel;
        const Tensor statistics = empty_like_type(v, {p.grad_v ? 2 * rows : 0}, ScalarType::Float);
        if (p.grad_v) p.statistics = statistics.mutable_data_ptr();
        launch_on_device_of(kOp, v,
                            [&](void* stream) { return hk_conv_attention_backward(&p, stream); });
      });
}

#endif

}  // namespace
}  // namespace hybrid

#if !defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, CPU, m) {
  m.impl("conv_attention", TORCH_BOX(&hybrid::forward_cpu));
  m.impl("conv_attention_backward", TORCH_BOX(&hybrid::backward_cpu));
}
#endif

#if defined(HYBRID_WITH_CUDA) || defined(HYBRID_HOST_EMULATOR)
STABLE_TORCH_LIBRARY_IMPL(hybrid, HYBRID_CUDA_KEY, m) {
  m.impl("conv_attention", TORCH_BOX(&hybrid::forward_cuda));
  m.impl("conv_attention_backward", TORCH_BOX(&hybrid::backward_cuda));
}
#endif
