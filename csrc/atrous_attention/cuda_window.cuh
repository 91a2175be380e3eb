// Atrous window attention on CUDA: which windows a block works on, and the way of their rows
// between global and shared memory. Shared by the forward and the backward kernels.
//
// Along one axis, window w of a branch starts at pixel w / d * (P d) + w % d and takes every d-th
// pixel from there, P of them or as many as the map still has. A window is therefore always a full
// rectangle of rows x cols slots: slots are numbered inside that rectangle, slots beyond the map
// do not exist, and a ragged window costs no more than what it holds. The bias index of a pair
//   r(s, t) = (a_s - a_t + P - 1) * (2P - 1) + (b_s - b_t + P - 1) = f(s) - f(t) + 2P (P - 1)
// is a difference of f(s) = a_s (2P - 1) + b_s, which a small table holds beside the pixel.
#pragma once

#include <algorithm>

#include "../common/device.h"
#include "atrous_attention.h"

namespace hybrid {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int64_t kMaxGrid = 0x7fffffff;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// ceil_div of types.h is for the host alone.
constexpr __host__ __device__ int divide_up(int a, int b) { return (a + b - 1) / b; }

inline __host__ __device__ int bias_entries(int P) { return (2 * P - 1) * (2 * P - 1); }

// How the blocks of a launch share the windows, worked out on the host. Block
//   first_block[k] + (group * tiles + tile) * h + head
// takes that tile of every windows of branch k, groups apart: neighbouring blocks are the heads of
// one window, whose rows lie side by side in memory.
struct Plan {
  int tiles;  // of own rows (queries, or keys) in a full window
  int64_t first_block[kMaxBranches + 1];
  int64_t groups[kMaxBranches], windows[kMaxBranches];
  int64_t row_windows[kMaxBranches], col_windows[kMaxBranches];
  bool vector_qkv, vector_out, vector_grad_out;  // rows can move by 16 bytes

  int64_t blocks(const AtrousAttentionParams& p) const { return first_block[p.n]; }
};

inline int64_t axis_windows(int64_t size, int64_t dilation, int64_t window) {
  const int64_t span = window * dilation, last = (size - 1) / span, left = size - last * span;
  return last * dilation + (left < dilation ? left : dilation);
}

inline bool is_vector(const AtrousAttentionParams& p, const void* base, const int64_t* strides,
                      int dims) {
  const int64_t element = p.dtype == DType::f32 ? 4 : 2;
  bool ok = reinterpret_cast<uintptr_t>(base) % 16 == 0 && p.e * element % 16 == 0;
  for (int i = 0; i < dims; ++i) ok = ok && strides[i] * element % 16 == 0;
  return ok;
}

// max_groups bounds the blocks per branch, head and tile; the cut depends on the shape alone.
inline Plan make_plan(const AtrousAttentionParams& p, int tile_rows, int64_t max_groups) {
  Plan plan{};
  plan.tiles = divide_up(p.P * p.P, tile_rows);
  const int64_t blocks_per_group = static_cast<int64_t>(plan.tiles) * p.h;
  const int64_t limit = kMaxGrid / (blocks_per_group * p.n);
  for (int k = 0; k < p.n; ++k) {
    plan.row_windows[k] = axis_windows(p.H, p.dilations[k], p.P);
    plan.col_windows[k] = axis_windows(p.W, p.dilations[k], p.P);
    plan.windows[k] = p.B * plan.row_windows[k] * plan.col_windows[k];
    plan.groups[k] = std::min({plan.windows[k], max_groups, limit});
    plan.first_block[k + 1] = plan.first_block[k] + plan.groups[k] * blocks_per_group;
  }
  plan.vector_qkv = is_vector(p, p.qkv, p.qkv_stride, 6);
  plan.vector_grad_out = is_vector(p, p.grad_out, p.grad_out_stride, 5);
  plan.vector_out = is_vector(p, p.out, nullptr, 0) && is_vector(p, p.grad_qkv, nullptr, 0);
  return plan;
}

// What one block works on.
struct Work {
  int branch, head, tile;
  int64_t group;
};

__device__ __forceinline__ Work this_work(const AtrousAttentionParams& p, const Plan& plan) {
  Work work{};
  while (work.branch + 1 < p.n && blockIdx.x >= plan.first_block[work.branch + 1]) ++work.branch;
  uint32_t rest = static_cast<uint32_t>(blockIdx.x - plan.first_block[work.branch]);
  work.head = rest % p.h;
  rest /= p.h;
  work.tile = rest % plan.tiles;
  work.group = rest / plan.tiles;
  return work;
}

struct Window {
  int64_t image;
  int row, col, dilation;  // row, col: the pixel of slot (0, 0)
  int rows, cols, slots;   // on the map
};

__device__ __forceinline__ Window window_at(const AtrousAttentionParams& p, const Plan& plan,
                                            int branch, uint64_t index) {
  const uint32_t d = p.dilations[branch];
  const uint64_t v = index % plan.col_windows[branch];
  index /= plan.col_windows[branch];
  const uint64_t u = index % plan.row_windows[branch];
  Window w;
  w.image = index / plan.row_windows[branch];
  w.dilation = d;
  w.row = static_cast<int>(u / d * d * p.P + u % d);
  w.col = static_cast<int>(v / d * d * p.P + v % d);
  w.rows = min(p.P, static_cast<int>((p.H - 1 - w.row) / d) + 1);
  w.cols = min(p.P, static_cast<int>((p.W - 1 - w.col) / d) + 1);
  w.slots = w.rows * w.cols;
  return w;
}

// Tables at the end of a block's shared memory; their size follows the window side.
struct Tables {
  int2* pixel;  // of a slot: row, column
  int* offset;  // f(slot)
  float* bias;  // of this branch and head, times log2(e)

  static __host__ __device__ int slots(int P) { return divide_up(P * P, 64) * 64; }
  static int bytes(int P) { return slots(P) * 12 + bias_entries(P) * 4; }

  __device__ Tables(void* memory, int P) {
    pixel = static_cast<int2*>(memory);
    offset = reinterpret_cast<int*>(pixel + slots(P));
    bias = reinterpret_cast<float*>(offset + slots(P));
  }
};

// Called once the rows are on their way, so that the two latencies overlap.
__device__ __forceinline__ void fill_bias(const Tables& tables, const AtrousAttentionParams& p,
                                          const Work& work) {
  if (!p.bias) return;
  const int entries = bias_entries(p.P);
  const float* from = static_cast<const float*>(p.bias) + work.branch * entries * p.h + work.head;
  for (int r = threadIdx.x; r < entries; r += kThreads)
    tables.bias[r] = from[static_cast<int64_t>(r) * p.h] * kLog2e;
}

// Up to a whole tile, slots that the window lacks have offset 0: their bias index is in the table.
__device__ __forceinline__ void fill_slots(const Tables& tables, const Window& window, int P) {
  for (int s = threadIdx.x; s < Tables::slots(P); s += kThreads) {
    const bool exists = s < window.slots;
    const int a = s / window.cols, b = s % window.cols;
    tables.offset[s] = exists ? a * (2 * P - 1) + b : 0;
    if (exists)
      tables.pixel[s] =
          make_int2(window.row + a * window.dilation, window.col + b * window.dilation);
  }
}

// The rows of one image, branch and head of a tensor, by pixel.
template <class T>
struct View {
  T* base;
  int64_t row_stride, col_stride;
  bool vector;

  __device__ __forceinline__ T* at(int2 pixel) const {
    return base + pixel.x * row_stride + pixel.y * col_stride;
  }
};

template <class T>
__device__ __forceinline__ View<const T> qkv_view(const AtrousAttentionParams& p, const Plan& plan,
                                                  const Work& work, int64_t image, int which) {
  const int64_t* s = p.qkv_stride;
  return {static_cast<const T*>(p.qkv) + image * s[0] + work.branch * s[3] + which * s[4] +
              work.head * s[5],
          s[1], s[2], plan.vector_qkv};
}

template <class T>
__device__ __forceinline__ View<const T> grad_out_view(const AtrousAttentionParams& p,
                                                       const Plan& plan, const Work& work,
                                                       int64_t image) {
  const int64_t* s = p.grad_out_stride;
  return {static_cast<const T*>(p.grad_out) + image * s[0] + work.branch * s[3] + work.head * s[4],
          s[1], s[2], plan.vector_grad_out};
}

// Of a contiguous (B, H, W, n, parts, h, width) tensor: out, lse and grad_qkv.
template <class T>
__device__ __forceinline__ View<T> packed_view(const AtrousAttentionParams& p, const Plan& plan,
                                               const Work& work, int64_t image, void* base,
                                               int parts, int part, int width) {
  const int64_t col_stride = static_cast<int64_t>(p.n) * parts * p.h * width;
  const int64_t row_stride = p.W * col_stride;
  return {static_cast<T*>(base) + image * p.H * row_stride +
              ((work.branch * parts + part) * static_cast<int64_t>(p.h) + work.head) * width,
          row_stride, col_stride, plan.vector_out};
}

// Gathers slots first..first+kRows into kParts tiles of kRows x LD elements, one behind the other,
// of which E columns count: zeros stand where the window or the head ends. The parts (key and
// value, say) lie part_stride elements apart. Asynchronous where rows can move by 16 bytes. Unrolled
// loops would hold addresses in registers that the kernels lack.
template <int kRows, int E, int LD, int kParts = 1, class T>
__device__ __forceinline__ void load_rows(T* tile, const View<const T>& view, const Tables& tables,
                                          int first, int slots, int e, int64_t part_stride = 0) {
  if (view.vector) {
    constexpr int kVector = 16 / sizeof(T), kChunks = E / kVector;
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks * kVector;
      const bool exists = first + row < slots && c < e;
      const T* from = exists ? view.at(tables.pixel[first + row]) + c : view.base;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        cp_async16(tile + (part * kRows + row) * LD + c, from + part * part_stride,
                   exists ? 16 : 0);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * E; i += kThreads) {
      const int row = i / E, c = i % E;
      const bool exists = first + row < slots && c < e;
      const T* from = exists ? view.at(tables.pixel[first + row]) + c : view.base;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        tile[(part * kRows + row) * LD + c] =
            exists ? from[part * part_stride] : Convert<T>::from_float(0.0f);
    }
  }
}

// Scatters the rows that this warp owns (G::warp_row) from a tile to their pixels.
template <class G, class T>
__device__ __forceinline__ void store_warp_rows(const T* tile, const View<T>& view,
                                                const Tables& tables, int first, int slots, int e) {
  constexpr int kVector = 16 / sizeof(T);
  const int step = view.vector ? kVector : 1, chunks = divide_up(e, step);
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < G::R / kWarps * chunks; i += 32) {
    const int row = G::warp_row(i / chunks), c = i % chunks * step;
    if (first + row >= slots) continue;
    T* to = view.at(tables.pixel[first + row]) + c;
    if (view.vector) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(tile + row * G::LD + c);
    } else {
      *to = tile[row * G::LD + c];
    }
  }
}

}  // namespace
}  // namespace hybrid
