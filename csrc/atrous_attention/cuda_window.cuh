// Atrous window attention on CUDA: which windows a block works on, and the way of their rows
// between global and shared memory. Shared by the forward and the backward kernels.
//
// Along one axis, window w of a branch starts at pixel w / d * (P d) + w % d and takes every d-th
// pixel from there, P of them or as many as the map still has. A window is therefore always a full
// rectangle of rows x cols slots: slots are numbered inside that rectangle, slots beyond the map
// do not exist, and a ragged window costs no more than what it holds. The bias index of a pair
//   r(s, t) = (a_s - a_t + P - 1) * (2P - 1) + (b_s - b_t + P - 1) = f(s) - f(t) + 2P (P - 1)
// is a difference of f(s) = a_s (2P - 1) + b_s, which a small table holds beside the pixel. Keys
// that do not exist point beyond the bias table, where -inf stands: they need no mask.
#pragma once

#include <algorithm>

#include "../common/attention/cuda_rows.cuh"
#include "../common/attention/cuda_tile.cuh"
#include "atrous_attention.h"

namespace hybrid {
namespace {

constexpr int64_t kManyBlocks = 8192;  // several waves of any GPU

inline __host__ __device__ int bias_entries(int P) { return (2 * P - 1) * (2 * P - 1); }

// Division by a number that the host knows: a multiplication and a shift for numerators below 2^31
// (Granlund and Montgomery, 1994), plain division above.
struct Divisor {
  uint32_t divisor, multiplier, shift;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(static_cast<uint32_t>(d)), shift(0) {
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t excess = (uint64_t{1} << shift) - divisor;
    multiplier = static_cast<uint32_t>((excess << 32) / divisor + 1);
  }
  __device__ __forceinline__ uint32_t divide(uint32_t x) const {
    return (static_cast<uint32_t>(static_cast<uint64_t>(x) * multiplier >> 32) + x) >> shift;
  }
  // Returns the quotient and leaves the remainder in x.
  __device__ __forceinline__ uint32_t split(uint32_t& x) const {
    const uint32_t quotient = divide(x);
    x -= quotient * divisor;
    return quotient;
  }
  __device__ __forceinline__ uint64_t divide_any(uint64_t x) const {
    return x >> 31 ? x / divisor : divide(static_cast<uint32_t>(x));
  }
};

// How the blocks of a launch share the windows, worked out on the host. Block
//   first_block[k] + (group * tiles + tile) * h + head
// takes that tile of every windows of branch k, groups apart: neighbouring blocks are the heads of
// one window, whose rows lie side by side in memory.
struct Plan {
  int tiles;  // of own rows (queries, or keys) in a full window
  Divisor by_tiles, by_heads, by_dilation[kMaxBranches];
  Divisor by_row_windows[kMaxBranches], by_col_windows[kMaxBranches];  // of one image
  int64_t first_block[kMaxBranches + 1];
  int64_t groups[kMaxBranches], windows[kMaxBranches];
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

// Cuts a launch into about as many blocks as wished: each reads the bias table once for all of its
// windows. The cut depends on the shape alone, never on the device.
inline Plan make_plan(const AtrousAttentionParams& p, int tile_rows, int64_t wished_blocks) {
  Plan plan{};
  plan.tiles = divide_up(p.P * p.P, tile_rows);
  plan.by_tiles = Divisor(plan.tiles);
  plan.by_heads = Divisor(p.h);
  const int64_t blocks_per_group = static_cast<int64_t>(plan.tiles) * p.h;
  const int64_t max_groups = std::max<int64_t>(16, wished_blocks / (blocks_per_group * p.n));
  for (int k = 0; k < p.n; ++k) {
    const int64_t rows = axis_windows(p.H, p.dilations[k], p.P);
    const int64_t cols = axis_windows(p.W, p.dilations[k], p.P);
    plan.by_row_windows[k] = Divisor(rows);
    plan.by_col_windows[k] = Divisor(cols);
    plan.by_dilation[k] = Divisor(p.dilations[k]);
    plan.windows[k] = p.B * rows * cols;
    plan.groups[k] = std::min(plan.windows[k], max_groups);
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
  uint32_t head = static_cast<uint32_t>(blockIdx.x - plan.first_block[work.branch]);
  uint32_t tile = plan.by_heads.split(head);
  work.group = plan.by_tiles.split(tile);
  work.head = head;
  work.tile = tile;
  return work;
}

struct Window {
  int64_t image;
  int row, col, dilation;  // row, col: the pixel of slot (0, 0)
  int rows, cols, slots;   // on the map
};

__device__ __forceinline__ Window window_at(const AtrousAttentionParams& p, const Plan& plan,
                                            int branch, uint64_t index) {
  const Divisor &by_dilation = plan.by_dilation[branch], &by_rows = plan.by_row_windows[branch],
                &by_cols = plan.by_col_windows[branch];
  const uint64_t image_row = by_cols.divide_any(index), image = by_rows.divide_any(image_row);
  uint32_t v = static_cast<uint32_t>(index - image_row * by_cols.divisor);
  uint32_t u = static_cast<uint32_t>(image_row - image * by_rows.divisor);
  const uint32_t d = by_dilation.divisor, span = d * p.P;
  const uint32_t row_span = by_dilation.split(u), col_span = by_dilation.split(v);
  Window w;
  w.image = image;
  w.dilation = d;
  w.row = row_span * span + u;
  w.col = col_span * span + v;
  w.rows = min(p.P, static_cast<int>(by_dilation.divide(p.H - 1 - w.row)) + 1);
  w.cols = min(p.P, static_cast<int>(by_dilation.divide(p.W - 1 - w.col)) + 1);
  w.slots = w.rows * w.cols;
  return w;
}

// Tables at the end of a block's shared memory; their size follows the window side. The logit of
// query s and key t takes bias[query_entry(s) + key_entry[t]].
struct Tables {
  int2* pixel;     // of a slot: row, column
  int* key_entry;  // -f(slot); for slots that the window lacks, what leads behind every entry
  float* bias;     // of this branch and head, times log2(e); zeros without bias; then -inf

  // f(s) + 2P (P - 1), the index beside key 0; for a slot that the window lacks that of slot 0.
  __device__ __forceinline__ int query_entry(int slot, int P) const {
    return 2 * P * (P - 1) - min(key_entry[slot], 0);
  }

  static __host__ __device__ int slots(int P) { return divide_up(P * P, 64) * 64; }
  static __host__ __device__ int missing_key(int P) { return 2 * P * (P - 1) + 1; }
  static __host__ __device__ int all_entries(int P) { return bias_entries(P) + missing_key(P); }
  static int bytes(int P) { return slots(P) * 12 + all_entries(P) * 4; }

  __device__ Tables(void* memory, int P) {
    pixel = static_cast<int2*>(memory);
    key_entry = reinterpret_cast<int*>(pixel + slots(P));
    bias = reinterpret_cast<float*>(key_entry + slots(P));
  }
};

// Called once the rows are on their way, so that the two latencies overlap.
__device__ __forceinline__ void fill_bias(const Tables& tables, const AtrousAttentionParams& p,
                                          const Work& work) {
  const int entries = bias_entries(p.P);
  const float* from = static_cast<const float*>(p.bias) +
                      work.branch * entries * static_cast<int64_t>(p.h) + work.head;
#pragma unroll 2
  for (int r = threadIdx.x; r < Tables::all_entries(p.P); r += kThreads) {
    const bool exists = r < entries;
    const float bias = exists && p.bias ? from[static_cast<int64_t>(r) * p.h] * kLog2e : 0.0f;
    tables.bias[r] = exists ? bias : -INFINITY;
  }
}

__device__ __forceinline__ void fill_slots(const Tables& tables, const Window& window, int P) {
  const int reciprocal = (1 << 16) / window.cols + 1;  // exact quotients: s < 256, cols <= 16
#pragma unroll 1
  for (int s = threadIdx.x; s < Tables::slots(P); s += kThreads) {
    const bool exists = s < window.slots;
    const int a = s * reciprocal >> 16, b = s - a * window.cols;
    tables.key_entry[s] = exists ? -(a * (2 * P - 1) + b) : Tables::missing_key(P);
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

// Slots first..first+kRows into kParts tiles, see copy_rows.
template <int kRows, int E, int LD, int kParts = 1, class T>
__device__ __forceinline__ void load_rows(T* tile, const View<const T>& view, const Tables& tables,
                                          int first, int slots, int e, int64_t part_stride = 0) {
  copy_rows<kRows, E, LD, kParts>(tile, view.vector, slots - first, e, view.base, part_stride,
                                  [&](int row) { return view.at(tables.pixel[first + row]); });
}

// The rows that this warp owns from a tile to their pixels, see store_own_rows.
template <class G, class T>
__device__ __forceinline__ void store_warp_rows(const T* tile, const View<T>& view,
                                                const Tables& tables, int first, int slots, int e) {
  store_own_rows<G>(tile, view.vector, slots - first, e,
                    [&](int row) { return view.at(tables.pixel[first + row]); });
}

// Dot products of queries (own rows) and keys -> logits in base 2, -inf where there is no key;
// scale contains log2(e). A warp leaves out what it owns beyond `rows`.
template <class G>
__device__ __forceinline__ void to_logits(typename G::Scores& x, const Tables& tables, int P,
                                          float scale, int query0, int key0, int rows) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    if (G::first_row(r) >= rows) break;
    const float* bias = tables.bias + tables.query_entry(query0 + G::row(r), P);
#pragma unroll
    for (int n = 0; n < G::kCols; ++n)
      x.at(r, n) = fmaf(x.at(r, n), scale, bias[tables.key_entry[key0 + G::col(n)]]);
  }
}

}  // namespace
}  // namespace hybrid
