// Kernels of the emulator's own tests, right unless asked for one of the mistakes below. Each
// mistake is one that kernels really have; tests/test_host_cuda.py shows what catches it.
#pragma once

#include "common/device.h"

namespace hybrid {

enum class Bug {
  none,
  // softmax_rows
  no_sync,               // warps read each other's results without a barrier
  divergent,             // __syncthreads in both branches of an if
  early_exit,            // threads return in front of a barrier
  out_of_bounds,         // one element behind the row
  shared_out_of_bounds,  // one element behind a shared array
  no_warp_sync,          // lanes read each other's shared memory without __syncwarp
  inter_block,           // all blocks write one element
  // flash_attention
  flash_no_sync,           // tiles are read before the other threads' copies are waited for
  flash_short_wait,        // one cp.async group too few is waited for
  flash_write_after_read,  // a tile is overwritten while slower warps still read it
  shared_too_small,        // the launcher asks for less dynamic shared memory than is used
  misaligned_rows,         // rows whose addresses ldmatrix and cp.async cannot take
  divergent_mask,          // a full-mask shuffle that only some lanes reach
};

template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int offset = 16; offset; offset /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int offset = 16; offset; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

constexpr int kSoftmaxThreads = 128;

// y (rows, n) = softmax of x (rows, n); one block per row.
template <class T>
__global__ void __launch_bounds__(kSoftmaxThreads) softmax_rows(const T* x, T* y, int n, Bug bug) {
  HYBRID_SHARED(float, maxima, [4]);
  HYBRID_SHARED(float, sums, [4]);
  HYBRID_SHARED(float, lane_sums, [kSoftmaxThreads]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x += static_cast<int64_t>(blockIdx.x) * n;
  T* const first = y;
  y += static_cast<int64_t>(blockIdx.x) * n;

  float largest = -INFINITY;
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    largest = max(largest, Convert<T>::to_float(x[i]));
  largest = warp_max(largest);
  if (lane == 0) maxima[warp] = largest;
  if (bug != Bug::no_sync) __syncthreads();
  largest = max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3]));

  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    sum += __expf(Convert<T>::to_float(x[i]) - largest);
  lane_sums[threadIdx.x] = sum;
  if (bug != Bug::no_warp_sync) __syncwarp();
  if (lane == 0) {
    sum = 0;
    for (int i = 0; i < 32; ++i) sum += lane_sums[warp * 32 + i];
    sums[bug == Bug::shared_out_of_bounds ? warp + 1 : warp] = sum;
    if (bug == Bug::shared_out_of_bounds) sums[warp] = sum;
  }
  if (bug == Bug::inter_block && threadIdx.x == 0) first[0] = Convert<T>::from_float(sum);

  if (bug == Bug::early_exit && threadIdx.x >= 96) return;
  if (bug == Bug::divergent && threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
  const float scale = 1.0f / (sums[0] + sums[1] + sums[2] + sums[3]);
  const int end = bug == Bug::out_of_bounds ? n + 1 : n;
  for (int i = threadIdx.x; i < end; i += blockDim.x)
    y[i] = Convert<T>::from_float(__expf(Convert<T>::to_float(x[i]) - largest) * scale);
}

// Attention of (batch, N, 32) queries on (batch, M, 32) keys and values, one block of 4 warps per
// 64 queries; each warp keeps 16 of them. Keys and values stream through shared memory in tiles of
// 64 by cp.async: while the scores are made the values arrive, while the values are summed the
// next keys arrive.
constexpr int kHeadDim = 32, kTile = 64, kFlashThreads = 128;

inline int flash_row_stride(Bug bug) { return bug == Bug::misaligned_rows ? 36 : 40; }

template <class T>
__device__ __forceinline__ void load_tile(T* tile, int stride, const T* from, int first, int rows) {
  constexpr int kChunks = kHeadDim / 8;
  for (int i = threadIdx.x; i < kTile * kChunks; i += kFlashThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const bool inside = first + row < rows;
    const int64_t source = static_cast<int64_t>(inside ? first + row : 0) * kHeadDim + column;
    cp_async16(tile + row * stride + column, from + source, inside ? 16 : 0);
  }
}

// scores (16, 64) = queries (16, 32) keys (64, 32)^T * scale; keys beyond the last are -infinity.
template <class T>
__device__ __forceinline__ void tile_scores(float (&scores)[8][4], const uint32_t (&queries)[2][4],
                                            const T* keys, int stride, float scale, int valid) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    for (float& score : scores[j]) score = 0;
    uint32_t b[4];
    ldmatrix_x4(b, keys + (j * 8 + lane % 8) * stride + lane / 8 * 8);
    mma_16816<T>(scores[j], queries[0], b[0], b[1]);
    mma_16816<T>(scores[j], queries[1], b[2], b[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = j * 8 + lane % 4 * 2 + i % 2;
      scores[j][i] = column < valid ? scores[j][i] * scale : -INFINITY;
    }
  }
}

// Turns the scores of row half h (rows g or g + 8) into weights exp(score - largest), and rescales
// what was summed under the old maximum.
__device__ __forceinline__ void online_softmax(float (&scores)[8][4], float (&sums)[4][4], int h,
                                               float& largest, float& total, Bug bug) {
  float now = largest;
  for (auto& s : scores) now = max(now, max(s[2 * h], s[2 * h + 1]));
  if (bug != Bug::divergent_mask || now > 1.0f)
    now = max(now, __shfl_xor_sync(0xffffffffu, now, 1));
  now = max(now, __shfl_xor_sync(0xffffffffu, now, 2));
  const float shrink = __expf(largest - now);
  largest = now;
  total *= shrink;
  for (auto& s : scores) {
    for (int i = 2 * h; i < 2 * h + 2; ++i) total += s[i] = __expf(s[i] - now);
  }
  for (auto& s : sums) {
    for (int i = 2 * h; i < 2 * h + 2; ++i) s[i] *= shrink;
  }
}

template <class T>
__device__ __forceinline__ void add_values(float (&sums)[4][4], const float (&weights)[8][4],
                                           const T* values, int stride) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kTile / 16; ++k) {
    const float (&left)[4] = weights[2 * k];
    const float (&right)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {Convert<T>::pack2(left[0], left[1]), Convert<T>::pack2(left[2], left[3]),
                           Convert<T>::pack2(right[0], right[1]),
                           Convert<T>::pack2(right[2], right[3])};
#pragma unroll
    for (int j = 0; j < kHeadDim / 16; ++j) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, values + (k * 16 + lane % 16) * stride + j * 16 + lane / 16 * 8);
      mma_16816<T>(sums[2 * j], a, b[0], b[1]);
      mma_16816<T>(sums[2 * j + 1], a, b[2], b[3]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kFlashThreads)
    flash_attention(const T* q, const T* k, const T* v, T* out, int N, int M, float scale,
                    int stride, Bug bug) {
  HYBRID_DYN_SMEM(raw);
  T* const queries = reinterpret_cast<T*>(raw);
  T* const keys = queries + kTile * stride;
  T* const values = keys + kTile * stride;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = blockIdx.x * kTile;
  q += static_cast<int64_t>(blockIdx.y) * N * kHeadDim;
  k += static_cast<int64_t>(blockIdx.y) * M * kHeadDim;
  v += static_cast<int64_t>(blockIdx.y) * M * kHeadDim;
  out += static_cast<int64_t>(blockIdx.y) * N * kHeadDim;

  load_tile(queries, stride, q, first_query, N);
  load_tile(keys, stride, k, 0, M);
  cp_async_commit();
  uint32_t a[2][4];
  float sums[4][4] = {};
  float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  for (int first_key = 0; first_key < M; first_key += kTile) {
    load_tile(values, stride, v, first_key, M);
    cp_async_commit();
    cp_async_wait<1>();
    if (bug != Bug::flash_no_sync) __syncthreads();  // queries and keys are there
    for (int i = 0; i < 2 && first_key == 0; ++i)
      ldmatrix_x4(a[i], queries + (warp * 16 + lane % 16) * stride + i * 16 + lane / 16 * 8);
    float scores[8][4];
    tile_scores(scores, a, keys, stride, scale, M - first_key);
    __syncthreads();  // everybody has read the keys
    if (first_key + kTile < M) load_tile(keys, stride, k, first_key + kTile, M);
    cp_async_commit();
    for (int h = 0; h < 2; ++h) online_softmax(scores, sums, h, largest[h], total[h], bug);
    if (bug == Bug::flash_short_wait)
      cp_async_wait<2>();
    else
      cp_async_wait<1>();
    __syncthreads();  // the values are there
    add_values(sums, scores, values, stride);
    if (bug != Bug::flash_write_after_read) __syncthreads();  // everybody has read the values
  }
  cp_async_wait<0>();

  for (int h = 0; h < 2; ++h) {
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 1);
    total[h] += __shfl_xor_sync(0xffffffffu, total[h], 2);
    const int row = first_query + warp * 16 + lane / 4 + h * 8;
    if (row >= N) continue;
    for (int j = 0; j < 4; ++j) {
      const uint32_t pair =
          Convert<T>::pack2(sums[j][2 * h] / total[h], sums[j][2 * h + 1] / total[h]);
      T* const to = out + static_cast<int64_t>(row) * kHeadDim + j * 8 + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(to) = pair;
    }
  }
}

// out[b] = sum of x (blocks, n) in row b, by a tree in dynamic shared memory; counts by votes and
// atomics how many of all elements are negative.
static __global__ void block_sum(const float* x, float* out, int* negatives, int n) {
  HYBRID_DYN_SMEM(raw);
  float* const partial = reinterpret_cast<float*>(raw);
  const float* const row = x + static_cast<int64_t>(blockIdx.x) * n;
  float sum = 0;
  for (int base = 0; base < n; base += blockDim.x) {
    const int i = base + threadIdx.x;
    const float value = i < n ? row[i] : 0;
    sum += value;
    const int count = __syncthreads_count(value < 0);
    if (threadIdx.x == 0) atomicAdd(negatives, count);
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

}  // namespace hybrid
