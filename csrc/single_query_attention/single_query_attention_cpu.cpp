// Single-query attention on the CPU: the table of one instruction set, the merger of the blocks,
// and float64, which needs no blocks: its launches do whole images in the merger.
#include "cpu_double.h"
#include "cpu_run.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = SingleQueryAttentionParams;

// call(a value of the data type), but for float64
template <class Call>
void by_dtype(const Params& p, Call call) {
  if (p.dtype == DType::f32) call(float());
  if (p.dtype == DType::bf16) call(bf16());
  if (p.dtype == DType::f16) call(f16());
}

int64_t forward_workspace(const Params& p) {
  if (p.dtype == DType::f64) return 0;
  return p.B * token_blocks(p) * p.h * p.G * row_floats(p) * int64_t{sizeof(float)};
}

int64_t backward_workspace(const Params& p) {
  if (p.dtype == DType::f64 || !p.grad_query) return 0;
  return p.B * token_blocks(p) * p.h * p.G * p.d * int64_t{sizeof(float)};
}

void forward(const Params& p, int64_t begin, int64_t end) {
  by_dtype(p, [&](auto type) { attention_forward<decltype(type)>(p, begin, end); });
}

// The blocks of an image, head and query in ascending order, relative to their largest score.
template <class T>
void merge_query(const Params& p, int64_t image, int head, int query) {
  const int64_t blocks = token_blocks(p), first = image * blocks;
  float top = -__builtin_inff(), total = 0;
  for (int64_t i = 0; i < blocks; ++i)
    top = std::max(top, partial_row(p, first + i, head, query)[0]);
  float sums[kMaxHeadDim] = {};
  for (int64_t i = 0; i < blocks; ++i) {
    const float* partial = partial_row(p, first + i, head, query);
    const float factor = __builtin_exp2f(partial[0] - top);
    total += factor * partial[1];
    for (int c = 0; c < p.dv; ++c) sums[c] += factor * partial[2 + c];
  }
  T* out = static_cast<T*>(p.out) + ((image * p.G + query) * p.h + head) * p.dv;
  for (int c = 0; c < p.dv; ++c) out[c] = from_float<T>(sums[c] / total);
  static_cast<float*>(p.lse)[(image * p.h + head) * p.G + query] =
      (top + __builtin_log2f(total)) * kLn2;
}

void merge(const Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f64) {
    DoubleSingleQuery attend(p);
    for (int64_t image = begin; image < end; ++image) attend.forward(image);
  }
  by_dtype(p, [&](auto type) {
    for (int64_t image = begin; image < end; ++image)
      for (int head = 0; head < p.h; ++head)
        for (int query = 0; query < p.G; ++query)
          merge_query<decltype(type)>(p, image, head, query);
  });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  by_dtype(p, [&](auto type) { attention_backward<decltype(type)>(p, begin, end); });
}

// The gradient of an image's queries, or of all images' shared ones, from its blocks in order.
template <class T>
void merge_query_grad(const Params& p) {
  const int64_t rows = int64_t{p.h} * p.G * p.d, blocks = token_blocks(p);
  const int64_t grads = p.shared ? 1 : p.B, merged = p.shared ? p.B * blocks : blocks;
  for (int64_t i = 0; i < grads; ++i) {
    float* sums = static_cast<float*>(p.workspace) + i * merged * rows;
    for (int64_t block = 1; block < merged; ++block)
      for (int64_t j = 0; j < rows; ++j) sums[j] += sums[block * rows + j];
    T* grad = static_cast<T*>(p.grad_query) + i * rows;
    for (int head = 0; head < p.h; ++head)
      for (int query = 0; query < p.G; ++query)
        for (int c = 0; c < p.d; ++c)
          grad[(query * p.h + head) * p.d + c] =
              from_float<T>(sums[(head * p.G + query) * p.d + c]);
  }
}

void merge_grad(const Params& p) {
  if (p.dtype == DType::f64) {
    const int64_t size = (p.shared ? 1 : p.B) * p.h * int64_t{p.G} * p.d;
    for (int64_t i = 0; p.grad_query && i < size; ++i) static_cast<double*>(p.grad_query)[i] = 0;
    DoubleSingleQuery attend(p);
    for (int64_t image = 0; image < p.B; ++image) attend.backward(image);
  }
  if (!p.grad_query) return;
  by_dtype(p, [&](auto type) { merge_query_grad<decltype(type)>(p); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const SingleQueryAttentionCpu& cpu_table<SingleQueryAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr SingleQueryAttentionCpu table{
      forward_workspace, backward_workspace, forward, merge, backward, merge_grad};
  return table;
}

}  // namespace hybrid
