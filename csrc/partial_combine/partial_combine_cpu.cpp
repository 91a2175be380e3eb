// partial_combine on the CPU: every token is read and written once, in the order of the image.
// Compiled once per instruction set.
#include "../common/arithmetic.h"
#include "../common/partial_sums.h"
#include "../common/streaming.h"
#include "partial_combine.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = PartialCombineParams;

// The tokens of a chunk; their places are looked up as they are walked over.
struct Chunk {
  int64_t image, first, end;

  Chunk(const Params& p, int64_t chunk)
      : image(chunk / combine_pieces(p)),
        first(chunk % combine_pieces(p) * kCombineTokens),
        end(first + kCombineTokens < p.N ? first + kCombineTokens : p.N) {}
};

template <class T>
const T* row(const TokenMap& map, int64_t image, int64_t token) {
  return static_cast<const T*>(map.data) + image * map.stride[0] + token * map.stride[1];
}

template <class T>
T* result_row(void* data, int64_t tokens, int64_t C, int64_t image, int64_t token) {
  return static_cast<T*>(data) + (image * tokens + token) * C;
}

template <class T>
bool streams(const Params& p, const void* data) {
  const int64_t bytes = p.C * static_cast<int64_t>(sizeof(T));
  return streams_rows(reinterpret_cast<uintptr_t>(data), bytes, p.B * p.N * bytes);
}

template <class T>
void combine(const Params& p, const Chunk& chunk) {
  const bool streaming = streams<T>(p, p.out);
  const T* update = static_cast<const T*>(p.update) + chunk.image * p.C;
  const int32_t* places = p.places + chunk.image * p.N;
  for (int64_t token = chunk.first; token < chunk.end; ++token) {
    T* out = result_row<T>(p.out, p.N, p.C, chunk.image, token);
    const bool background = places[token] < 0;
    const T* from = background ? row<T>(p.x, chunk.image, token)
                               : row<T>(p.foreground, chunk.image, places[token]);
    for_each_vector<T>(p.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      auto v = load_lanes(from + c, lanes);
      if (background) v = v + load_lanes(update + c, lanes);
      stream_lanes(out + c, v, lanes, streaming);
    });
  }
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    for (int64_t chunk = begin; chunk < end; ++chunk) combine<decltype(type)>(p, Chunk(p, chunk));
  });
  stream_fence();
}

template <class T>
typename Arithmetic<T>::Scalar* chunk_sums(const Params& p, int64_t chunk) {
  using Scalar = typename Arithmetic<T>::Scalar;
  return p.grad_update ? static_cast<Scalar*>(p.workspace) + chunk * whole_vectors<T>(p.C)
                       : nullptr;
}

// The gradient of one background token: to dx, and into the sums.
template <class T>
void background_gradient(const Params& p, const T* grad, T* grad_x,
                         typename Arithmetic<T>::Scalar* sums, bool streaming) {
  for_each_vector<T>(p.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const auto g = load_lanes(grad + c, lanes);
    if (grad_x) stream_lanes(grad_x + c, g, lanes, streaming);
    if (sums) store(sums + c, load(sums + c) + g);
  });
}

// The same of a foreground token: to dforeground, and zeros to dx.
template <class T>
void foreground_gradient(const Params& p, const T* grad, T* grad_x, T* grad_foreground,
                         bool streaming) {
  for_each_vector<T>(p.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
    const auto g = load_lanes(grad + c, lanes);
    if (grad_x)
      stream_lanes(grad_x + c, broadcast(typename Arithmetic<T>::Scalar(0)), lanes, streaming);
    if (grad_foreground) store_lanes(grad_foreground + c, g, lanes);
  });
}

template <class T>
void scatter_gradient(const Params& p, int64_t number) {
  const Chunk chunk(p, number);
  const bool streaming = streams<T>(p, p.grad_x);
  const int32_t* places = p.places + chunk.image * p.N;
  auto* sums = chunk_sums<T>(p, number);
  if (sums) zero(sums, whole_vectors<T>(p.C));
  for (int64_t token = chunk.first; token < chunk.end; ++token) {
    const T* grad = row<T>(p.grad, chunk.image, token);
    T* grad_x = p.grad_x ? result_row<T>(p.grad_x, p.N, p.C, chunk.image, token) : nullptr;
    if (places[token] < 0) {
      background_gradient(p, grad, grad_x, sums, streaming);
      continue;
    }
    T* to = p.grad_foreground
                ? result_row<T>(p.grad_foreground, p.n, p.C, chunk.image, places[token])
                : nullptr;
    foreground_gradient(p, grad, grad_x, to, streaming);
  }
}

void backward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    for (int64_t chunk = begin; chunk < end; ++chunk) scatter_gradient<decltype(type)>(p, chunk);
  });
  stream_fence();
}

int64_t workspace_bytes(const Params& p) {
  return for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t row = whole_vectors<T>(p.C) * int64_t{sizeof(typename Arithmetic<T>::Scalar)};
    return p.grad_update ? p.B * combine_pieces(p) * row : 0;
  });
}

void reduce(const Params& p) {
  for_dtype(p.dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t image = 0; image < p.B; ++image)
      sum_parts(chunk_sums<T>(p, image * combine_pieces(p)), combine_pieces(p),
                whole_vectors<T>(p.C), p.C, static_cast<T*>(p.grad_update) + image * p.C);
  });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const PartialCombineCpu& cpu_table<PartialCombineCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr PartialCombineCpu table{workspace_bytes, forward, backward, reduce};
  return table;
}

}  // namespace hybrid
