// The backward of region_mix on CUDA. A block owns whole regions, as many as its slots hold: a
// thread walks down one column of a region (and, in regions wider than the block, down the next
// one that it has), meets the rows of dy and gives each to the K rows of dz that see it. The same
// values of dy, times z, are what the taps sum, so that z needs no halo. Sums over the columns of a
// region, and at the end those of the taps over the block, go through shared memory.
#pragma once

#include "cuda_launch.cuh"

namespace hybrid {
namespace {

// What a thread keeps from row to row. Tap (u, v) of the transposed kernel is K - 1 - u, K - 1 - v.
template <int K, int V>
struct Sums {
  Channels<V> taps[K][K], bias;
};

// One column of a region: rows first .. end - 1 of dz, whose sum is returned.
template <class T, int K, int V>
__device__ __forceinline__ Channels<V> walk_column(const RegionMixParams& p,
                                                   const Channels<V> (&weight)[K][K], int image,
                                                   int first, int end, int column, int c,
                                                   Sums<K, V>& sums) {
  Channels<V> dz[K], z[K], token, total;
  if (p.grad_weight)
    token = load_channels<V>(pixel_of<T>(p.g, image, first / static_cast<int>(p.region),
                                         column / static_cast<int>(p.region)) +
                             c);
  for (int i = first - K / 2; i < end + K / 2; ++i) {
#pragma unroll
    for (int m = 0; m + 1 < K; ++m) z[m] = z[m + 1];
    z[K - 1] = {};
    if (p.grad_weight && i + K / 2 < end) {
      z[K - 1] = load_channels<V>(pixel_of<T>(p.x, image, i + K / 2, column) + c);
      z[K - 1].add(token);
    }
#pragma unroll
    for (int v = 0; v < K; ++v) {
      const int j = column + v - K / 2;
      if (i < 0 || i >= p.H || j < 0 || j >= p.W) continue;
      const Channels<V> dy = load_channels<V>(pixel_of<T>(p.grad, image, i, j) + c);
#pragma unroll
      for (int m = 0; m < K; ++m) {
        dz[m].add_product(weight[K - 1 - m][v], dy);
        if (p.grad_weight) sums.taps[K - 1 - m][v].add_product(z[m], dy);
      }
      if (v == K / 2 && i >= first && i < end) sums.bias.add(dy);
    }
    if (i - K / 2 >= first) {
      if (p.grad_x.data) store_channels(pixel_of<T>(p.grad_x, image, i - K / 2, column) + c, dz[0]);
      total.add(dz[0]);
    }
#pragma unroll
    for (int m = 0; m + 1 < K; ++m) dz[m] = dz[m + 1];
    dz[K - 1] = {};
  }
  return total;
}

// The sum over `count` slots from this one on, in ascending order, where wanted. All threads of the
// block take part.
template <int V>
__device__ __forceinline__ Channels<V> sum_slots(const Channels<V>& value, int count, bool wanted) {
  HYBRID_SHARED(float, columns, [kThreads][V]);
  __syncthreads();  // the columns before have been read
#pragma unroll
  for (int i = 0; i < V; ++i) columns[threadIdx.x][i] = value.v[i];
  __syncthreads();
  Channels<V> sum;
  for (int s = 0; wanted && s < count; ++s)
#pragma unroll
    for (int i = 0; i < V; ++i) sum.v[i] += columns[threadIdx.x + s * kLanes<V>][i];
  return sum;
}

template <class T, int K, int V>
__global__ void __launch_bounds__(kThreads, K == 7 ? 1 : 2)
    backward_kernel(const RegionMixParams p, int tiles, Partials partials) {
  const Place<V> place(tiles);
  const bool has_channels = place.c < p.C;
  // Slots of a region, and regions that the block has at a time.
  const int width = p.region < kSlots<V> ? static_cast<int>(p.region) : kSlots<V>;
  const int at_once = kSlots<V> / width;
  const int side = static_cast<int>(p.region), regions = static_cast<int>(p.B * p.rows * p.columns);
  const int rows = static_cast<int>(p.rows), columns = static_cast<int>(p.columns);
  const int H = static_cast<int>(p.H), step = static_cast<int>(partials.parts) * at_once;
  Channels<V> weight[K][K];
  Sums<K, V> sums;
#pragma unroll
  for (int t = 0; has_channels && t < K * K; ++t)
    weight[K - 1 - t / K][K - 1 - t % K] =
        load_channels<V>(static_cast<const float*>(p.weight) + t * p.C + place.c);

  for (int begin = place.group * at_once; begin < regions; begin += step) {
    const int region = begin + place.slot / width;
    const bool has_region = place.slot < width * at_once && region < regions && has_channels;
    const int image = region / columns / rows, row = region / columns % rows;
    const int q = region % columns, first = row * side;
    const int end = H - first < side ? H : first + side;
    const bool is_owner = has_region && place.slot % width == 0;
    Channels<V> total;
    for (int shift = 0; shift < side && shift < p.W; shift += width) {
      const int inside = shift + place.slot % width, column = q * side + inside;
      Channels<V> sum;
      if (has_region && inside < side && column < p.W)
        sum = walk_column<T>(p, weight, image, first, end, column, place.c, sums);
      if (p.grad_g.data) total.add(sum_slots(sum, width, is_owner));
    }
    if (p.grad_g.data && is_owner)
      store_channels(pixel_of<T>(p.grad_g, image, row, q) + place.c, total);
  }

  float* to = partials.data + place.group * partials.row + place.c;
#pragma unroll
  for (int t = 0; t < K * K; ++t)
    if (p.grad_weight)
      store_block_sum(sums.taps[K - 1 - t / K][K - 1 - t % K], place.lane, place.slot,
                      has_channels ? to + t * p.C : nullptr);
  if (p.grad_bias)
    store_block_sum(sums.bias, place.lane, place.slot,
                    has_channels ? to + partials.row - p.C : nullptr);
}

template <class T, int K, int V>
int launch_backward(const RegionMixParams& p, void* stream) {
  const Partials partials = partials_of(p);
  const dim3 grid(static_cast<unsigned>(partials.parts * channel_tiles(p.C)));
  if (int error = HYBRID_LAUNCH((backward_kernel<T, K, V>), grid, dim3(kThreads), 0, stream, p,
                                channel_tiles(p.C), partials))
    return error;
  if (int error = fold(partials, 0, K * K * p.C, p.grad_weight, stream)) return error;
  return fold(partials, partials.row - p.C, p.C, p.grad_bias, stream);
}

template <class T, int K>
int launch_packed_backward(const RegionMixParams& p, void* stream) {
  return is_packed<T, 2>(p) ? launch_backward<T, K, 2>(p, stream)
                            : launch_backward<T, K, 1>(p, stream);
}

}  // namespace

template <class T>
int region_mix_backward(const RegionMixParams& p, void* stream) {
  if (p.side == 1) return launch_packed_backward<T, 1>(p, stream);
  if (p.side == 3) return launch_packed_backward<T, 3>(p, stream);
  if (p.side == 5) return launch_backward<T, 5, 1>(p, stream);
  return launch_backward<T, 7, 1>(p, stream);
}

}  // namespace hybrid
