// Windows with an abstract token on CUDA: which rows a block works on, and where they lie. The rows
// of a window are numbered without gaps: the token, the pixels on the map, and as keys alone, with
// pad_kv, the pixels outside. A ragged window costs no more than what it holds.
#pragma once

#include "../common/attention/cuda_rows.cuh"
#include "abstract_token_attention.h"

namespace hybrid {
namespace {

using Params = AbstractTokenAttentionParams;

inline bool is_vector(const Params& p, const void* base, const int64_t* strides, int dims) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  bool ok = reinterpret_cast<uintptr_t>(base) % 16 == 0 && p.d * element % 16 == 0;
  for (int i = 0; i < dims; ++i) ok = ok && strides[i] * element % 16 == 0;
  return ok;
}

// Which tensors' rows can move by 16 bytes; `tiles` of rows in a full window.
struct Plan {
  bool qkv, out, grad_out, grad_qkv;
  int tiles;

  Plan(const Params& p, int tile_rows) : tiles(divide_up(1 + p.P * p.P, tile_rows)) {
    qkv = is_vector(p, p.qkv, p.qkv_stride, 5) && is_vector(p, p.token, nullptr, 0) &&
          is_vector(p, p.pad_kv, nullptr, 0);
    out = is_vector(p, p.out, nullptr, 0) && is_vector(p, p.summary, nullptr, 0);
    grad_out = is_vector(p, p.grad_out, p.grad_out_stride, 4) &&
               is_vector(p, p.grad_summary, p.grad_summary_stride, 3);
    grad_qkv = is_vector(p, p.grad_qkv, nullptr, 0);
  }

  int64_t blocks(const Params& p) const {
    return p.B * window_rows(p) * window_cols(p) * tiles * p.h;
  }
};

// The window, head and first row of a block; neighbouring blocks are the heads of one window, whose
// rows lie side by side in memory.
struct Work {
  int64_t number, image;  // number: among the windows of all images
  int64_t in_image;
  int64_t row, col;  // of the first pixel
  int head, first, tile;
  int rows, cols, queries, keys;

  __device__ __forceinline__ Work(const Params& p, const Plan& plan, int tile_rows) {
    const unsigned rest = blockIdx.x / p.h, window = rest / plan.tiles;
    const unsigned across = divide_up(static_cast<int>(p.W), p.P);
    const unsigned per_image = across * divide_up(static_cast<int>(p.H), p.P);
    head = blockIdx.x - rest * p.h;
    tile = rest - window * plan.tiles;
    first = tile * tile_rows;
    number = window;
    image = window / per_image;
    in_image = window % per_image;
    row = in_image / across * p.P;
    col = in_image % across * p.P;
    rows = static_cast<int>(min(int64_t{p.P}, p.H - row));
    cols = static_cast<int>(min(int64_t{p.P}, p.W - col));
    queries = 1 + rows * cols;
    keys = p.pad_kv ? 1 + p.P * p.P : queries;
  }

  // Row 0 is the token; row 1 + s is pixel s of those on the map.
  __device__ __forceinline__ int slot(const Params& p, int row) const {
    const int s = row - 1, a = s * reciprocal() >> 16;
    return row ? 1 + a * p.P + s - a * cols : 0;
  }
  // Exact quotients by cols: s < 256, cols <= 16.
  __device__ __forceinline__ int reciprocal() const { return (1 << 16) / cols + 1; }
};

// The rows of one window and head of a tensor.
template <class T>
struct WindowRows {
  T *token, *pixels, *outside;  // row 0; pixel 0; what stands for any pixel outside, or null
  int64_t row_stride, col_stride;
  int queries, cols, reciprocal;

  __device__ __forceinline__ T* operator()(int row) const {
    if (row == 0) return token;
    if (row >= queries) return outside;
    const int s = row - 1, a = s * reciprocal >> 16;
    return pixels + a * row_stride + (s - a * cols) * col_stride;
  }
};

// `stride`: of images, rows and columns; `first`: this head of image 0.
template <class T>
__device__ __forceinline__ WindowRows<T> window_rows(T* first, const int64_t (&stride)[3],
                                                     const Work& work, T* token,
                                                     T* outside = nullptr) {
  return {token,     first + work.image * stride[0] + work.row * stride[1] + work.col * stride[2],
          outside,   stride[1],
          stride[2], work.queries,
          work.cols, work.reciprocal()};
}

// Part 0: queries, 1: keys, 2: values.
template <class T>
__device__ __forceinline__ WindowRows<const T> qkv_rows(const Params& p, const Work& work,
                                                        int part) {
  const int64_t* s = p.qkv_stride;
  const int64_t head = work.head * p.d, parts = int64_t{p.h} * p.d;
  const T* pad =
      p.pad_kv && part ? static_cast<const T*>(p.pad_kv) + (part - 1) * parts + head : nullptr;
  return window_rows(static_cast<const T*>(p.qkv) + part * s[3] + work.head * s[4],
                     {s[0], s[1], s[2]}, work, static_cast<const T*>(p.token) + part * parts + head,
                     pad);
}

// Of a contiguous map (B, H, W, parts, h, d).
template <class T>
__device__ __forceinline__ WindowRows<T> packed_rows(const Params& p, const Work& work, void* data,
                                                     int parts, int part, T* token) {
  const int64_t width = int64_t{p.h} * p.d, pixel = parts * width;
  return window_rows(static_cast<T*>(data) + part * width + work.head * p.d,
                     {p.H * p.W * pixel, p.W * pixel, pixel}, work, token);
}

template <class T>
__device__ __forceinline__ WindowRows<T> out_rows(const Params& p, const Work& work) {
  return packed_rows<T>(p, work, p.out, 1, 0,
                        static_cast<T*>(p.summary) + (work.number * p.h + work.head) * p.d);
}

template <class T>
__device__ __forceinline__ WindowRows<const T> grad_out_rows(const Params& p, const Work& work) {
  const int64_t *s = p.grad_out_stride, *t = p.grad_summary_stride;
  return window_rows(static_cast<const T*>(p.grad_out) + work.head * s[3], {s[0], s[1], s[2]}, work,
                     static_cast<const T*>(p.grad_summary) + work.image * t[0] +
                         work.in_image * t[1] + work.head * t[2]);
}

__device__ __forceinline__ float* lse_row(const Params& p, const Work& work) {
  return static_cast<float*>(p.lse) + (work.number * p.h + work.head) * (1 + p.P * p.P);
}

// Rows first.. into a tile; `rows` of them exist.
template <int kRows, class G>
__device__ __forceinline__ void load_rows(typename G::T* tile, bool vector,
                                          const WindowRows<const typename G::T>& from, int first,
                                          int rows, int e) {
  copy_rows<kRows, G::E, G::LD>(tile, vector, rows, e, from.pixels, 0,
                                [&](int row) { return from(first + row); });
}

}  // namespace
}  // namespace hybrid
