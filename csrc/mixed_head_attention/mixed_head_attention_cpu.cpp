// mixed_head_attention on the CPU: the table of kernels, and the sums over chunks. Compiled once
// per instruction set.
#include "cpu_backward.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype,
            [&](auto type) { mixed_head_attention_forward<decltype(type)>(p, begin, end); });
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype,
            [&](auto type) { mixed_head_attention_backward<decltype(type)>(p, begin, end); });
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto type) {
    const MixedSums<decltype(type)> sums(p);
    return p.B * query_pieces(p) * sums.chunk * static_cast<int64_t>(sizeof(*sums.data));
  });
}

// The sums (head, key, channel) of an image's chunks to a gradient (B, M, h, d).
template <class T>
void reduce_image(const Params& p, const MixedSums<T>& sums, int64_t image, int64_t offset,
                  void* grad) {
  const int64_t words = whole_vectors<T>(p.d), pieces = query_pieces(p);
  T* to = static_cast<T*>(grad) + image * p.M * p.h * p.d;
  for (int64_t key = 0; grad && key < p.M; ++key)
    for (int64_t head = 0; head < p.h; ++head, to += p.d)
      sum_parts(sums.at(image * pieces) + offset + (head * p.M + key) * words, pieces, sums.chunk,
                p.d, to);
}

void reduce_tokens(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    const MixedSums<decltype(type)> sums(p);
    for (int64_t image = begin; image < end; ++image) {
      reduce_image(p, sums, image, sums.k, p.grad_k);
      reduce_image(p, sums, image, sums.v, p.grad_v);
    }
  });
}

// Sums of `count` elements of every chunk, times a factor, to a layer's gradient.
template <class T>
void reduce_layer(const Params& p, const MixedSums<T>& sums, int64_t offset, int64_t count,
                  double factor, void* grad) {
  using Scalar = typename Arithmetic<T>::Scalar;
  AlignedBuffer<Scalar> total(static_cast<size_t>(count));
  sum_parts(sums.at(0) + offset, p.B * query_pieces(p), sums.chunk, count, &total[0]);
  for (int64_t i = 0; i < count; ++i) total[i] *= static_cast<Scalar>(factor);
  T* to = static_cast<T*>(grad);
  for_each_vector<T>(count, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
    store_lanes(to + i, load_lanes(total + i, lanes), lanes);
  });
}

void reduce_layers(const Params& p) {
  for_dtype(p.dtype, [&](auto type) {
    const MixedSums<decltype(type)> sums(p);
    reduce_layer(p, sums, sums.w1, p.g * p.h, p.scale, p.grad_w1);
    reduce_layer(p, sums, sums.w2, p.h * p.g, 1, p.grad_w2);
    reduce_layer(p, sums, sums.b2, p.h, 1, p.grad_b2);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const MixedHeadAttentionCpu& cpu_table<MixedHeadAttentionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr MixedHeadAttentionCpu table{workspace_bytes, forward, backward, reduce_tokens,
                                               reduce_layers};
  return table;
}

}  // namespace hybrid
