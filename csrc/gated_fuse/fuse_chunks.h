// gated_fuse from chunks of pixels to rows: which pixels a chunk holds, where its partial sums lie,
// and the kernel that serves its number of branches.
#pragma once

#include "../common/partial_sums.h"
#include "../common/streaming.h"
#include "fuse_row.h"

namespace hybrid {
namespace HYBRID_ISA {

// For maps of T. Each type is compiled in a file of its own, gated_fuse_cpu_<dtype>.cpp, to be
// rebuilt in seconds.
template <class T>
void fuse_forward(const GatedFuseParams& p, int64_t chunk_begin, int64_t chunk_end);
template <class T>
void fuse_backward(const GatedFuseParams& p, int64_t chunk_begin, int64_t chunk_end);

namespace {

constexpr int64_t kChunkPixels = 256;

// The cut into chunks: a piece of one image, or several whole small images.
struct Cut {
  int64_t pixels, pieces, images, chunks;  // of an image; per image; per chunk; in all

  explicit Cut(const GatedFuseParams& p)
      : pixels(p.H * p.W),
        pieces(ceil_div(pixels, kChunkPixels)),
        images(pieces > 1 ? 1 : kChunkPixels / pixels),
        chunks(ceil_div(p.B, images) * pieces) {}

  int64_t first_image(int64_t chunk) const { return chunk / pieces * images; }
  int64_t first_pixel(int64_t chunk) const { return chunk % pieces * kChunkPixels; }
};

// Where the partial sums lie: those of weight and bias once per chunk, those of scale once per
// piece of an image.
template <class T>
struct Workspace {
  using Scalar = typename Arithmetic<T>::Scalar;
  int64_t stride, gate, gate_total, scale, scale_total;  // in elements

  Workspace(const GatedFuseParams& p, const Cut& cut)
      : stride(whole_vectors<T>(p.C)),
        gate(p.grad_weight ? 2 * p.n * stride : 0),
        gate_total(cut.chunks * gate),
        scale(p.grad_scale ? p.n * stride : 0),
        scale_total(p.B * cut.pieces * scale) {}

  Scalar* gate_sums(const GatedFuseParams& p, int64_t chunk) const {
    return gate ? static_cast<Scalar*>(p.workspace) + chunk * gate : nullptr;
  }
  Scalar* scale_sums(const GatedFuseParams& p, const Cut& cut, int64_t image, int64_t chunk) const {
    if (!scale) return nullptr;
    const int64_t piece = image * cut.pieces + chunk % cut.pieces;
    return static_cast<Scalar*>(p.workspace) + gate_total + piece * scale;
  }
};

// Whether whole vectors of every result are aligned, so that they can be streamed.
template <class T>
bool can_stream(const GatedFuseParams& p, bool backward) {
  uintptr_t places = reinterpret_cast<uintptr_t>(backward ? p.grad_x : p.y);
  for (int k = 0; backward && k < p.n; ++k) places |= reinterpret_cast<uintptr_t>(p.grad_m[k]);
  const int64_t row = p.C * static_cast<int64_t>(sizeof(T));
  return streams_rows(places, row, p.B * p.H * p.W * row);
}

// The rows of a chunk, one after another.
template <class T, bool kBackward>
class Rows {
 public:
  explicit Rows(const GatedFuseParams& p) : p_(p), cut_(p), workspace_(p, cut_) {
    row_.C = p.C;
    row_.n = p.n;
    row_.residual = p.residual;
    row_.streams = can_stream<T>(p, kBackward);
    row_.weight = static_cast<const Scalar*>(p.weight);
    row_.bias = static_cast<const Scalar*>(p.bias);
    row_.scale_channels = p.scale_channels;
    row_.sum_stride = workspace_.stride;
  }

  // kernel(Row) for every row of the chunk.
  template <class Kernel>
  void for_each(int64_t chunk, const Kernel& kernel) {
    if (kBackward) start_gate_sums(chunk);
    const int64_t first_image = cut_.first_image(chunk);
    for (int64_t image = first_image; image < first_image + cut_.images && image < p_.B; ++image) {
      start_image(image, chunk);
      const int64_t first = cut_.first_pixel(chunk);
      const int64_t end = first + kChunkPixels < cut_.pixels ? first + kChunkPixels : cut_.pixels;
      for (int64_t pixel = first; pixel < end; pixel += row_.pixels) {
        const int64_t i = pixel / p_.W, j = pixel % p_.W;
        row_.pixels = p_.W - j < end - pixel ? p_.W - j : end - pixel;
        point_at(image, i, j);
        kernel(row_);
      }
    }
  }

 private:
  using Scalar = typename Arithmetic<T>::Scalar;

  void start_gate_sums(int64_t chunk) {
    row_.sum_weight = workspace_.gate_sums(p_, chunk);
    row_.sum_bias = row_.sum_weight ? row_.sum_weight + workspace_.gate / 2 : nullptr;
    zero(row_.sum_weight, workspace_.gate);
  }

  void start_image(int64_t image, int64_t chunk) {
    if (p_.scale)
      row_.scale = static_cast<const Scalar*>(p_.scale) + image * p_.n * p_.scale_channels;
    if (!kBackward) return;
    row_.sum_scale = workspace_.scale_sums(p_, cut_, image, chunk);
    zero(row_.sum_scale, workspace_.scale);
  }

  void point_at(int64_t image, int64_t i, int64_t j) {
    const auto input = [&](const FuseMap& map) -> Pixels<const T> {
      const int64_t offset = image * map.stride[0] + i * map.stride[1] + j * map.stride[2];
      return {static_cast<const T*>(map.data) + offset, map.stride[2]};
    };
    const auto result = [&](void* data) -> Pixels<T> {
      const int64_t offset = ((image * p_.H + i) * p_.W + j) * p_.C;
      return {data ? static_cast<T*>(data) + offset : nullptr, p_.C};
    };
    row_.x = input(p_.x);
    for (int k = 0; k < p_.n; ++k) row_.m[k] = input(p_.m[k]);
    if (!kBackward) {
      row_.y = result(p_.y);
      return;
    }
    row_.grad = input(p_.grad);
    row_.grad_x = result(p_.grad_x);
    for (int k = 0; k < p_.n; ++k) row_.grad_m[k] = result(p_.grad_m[k]);
  }

  const GatedFuseParams& p_;
  const Cut cut_;
  const Workspace<T> workspace_;
  Row<T> row_{};
};

template <class T, int N, bool kGated, bool kBackward>
void run_rows(const GatedFuseParams& p, int64_t chunk_begin, int64_t chunk_end) {
  Rows<T, kBackward> rows(p);
  for (int64_t chunk = chunk_begin; chunk < chunk_end; ++chunk)
    rows.for_each(chunk, [](const Row<T>& row) {
      const RowKernel<T, N, kGated> kernel(row);
      if (kBackward)
        kernel.backward();
      else
        kernel.forward();
    });
  stream_fence();
}

template <class T, bool kBackward>
void run_chunks(const GatedFuseParams& p, int64_t begin, int64_t end) {
  if (!p.weight) return run_rows<T, 0, false, kBackward>(p, begin, end);
  if constexpr (Arithmetic<T>::kCount > 1) {  // the counts that ACC-ViT has are unrolled
    if (p.n == 2) return run_rows<T, 2, true, kBackward>(p, begin, end);
    if (p.n == 3) return run_rows<T, 3, true, kBackward>(p, begin, end);
    if (p.n == 4) return run_rows<T, 4, true, kBackward>(p, begin, end);
  }
  run_rows<T, 0, true, kBackward>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
