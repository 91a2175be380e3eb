// The forward of region_mix on CUDA. A thread owns V channels of a column and walks down a strip
// of it: every row of z that it meets goes into the K outputs that see it, so that only these are
// kept, and z = x + g in registers alone. Neighbouring columns meet in the first-level cache.
#pragma once

#include "cuda_launch.cuh"

namespace hybrid {
namespace {

constexpr int kStripRows = 8;

template <class T, int K, int V>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const RegionMixParams p, int tiles, int bands) {
  const Place<V> place(tiles);
  const int strip = place.group * kSlots<V> + place.slot, side = static_cast<int>(p.region);
  const int H = static_cast<int>(p.H), W = static_cast<int>(p.W);
  const int image = strip / W / bands, column = strip % W;
  if (image >= p.B || place.c >= p.C) return;
  const int first = strip / W % bands * kStripRows;
  const int end = first + kStripRows < H ? first + kStripRows : H;

  Channels<V> weight[K][K], bias, out[K], token[K];
  for (int u = 0; u < K; ++u)
#pragma unroll
    for (int v = 0; v < K; ++v)
      weight[u][v] =
          load_channels<V>(static_cast<const float*>(p.weight) + (u * K + v) * p.C + place.c);
  if (p.bias) bias = load_channels<V>(static_cast<const float*>(p.bias) + place.c);
#pragma unroll
  for (int m = 0; m < K; ++m) out[m] = bias;

  int row = 0, next = 0;  // of regions: the present one, and where the next one begins
  for (int i = first - K / 2; i < end + K / 2; ++i) {
    const bool exists = i >= 0 && i < H, is_new = exists && i >= next;
    if (is_new) {
      row = i / side;
      next = (row + 1) * side;
    }
#pragma unroll
    for (int v = 0; v < K; ++v) {
      const int j = column + v - K / 2;
      if (!exists || j < 0 || j >= W) continue;
      if (is_new) token[v] = load_channels<V>(pixel_of<T>(p.g, image, row, j / side) + place.c);
      Channels<V> z = load_channels<V>(pixel_of<T>(p.x, image, i, j) + place.c);
      z.add(token[v]);
#pragma unroll
      for (int m = 0; m < K; ++m) out[m].add_product(weight[K - 1 - m][v], z);
    }
    const int done = i - K / 2;  // the row of out[0]
    if (done >= first) store_channels(pixel_of<T>(p.y, image, done, column) + place.c, out[0]);
#pragma unroll
    for (int m = 0; m + 1 < K; ++m) out[m] = out[m + 1];
    out[K - 1] = bias;
  }
}

template <class T, int K, int V>
int launch_forward(const RegionMixParams& p, void* stream) {
  const int bands = static_cast<int>(ceil_div<int64_t>(p.H, kStripRows)),
            tiles = channel_tiles(p.C);
  const int64_t groups = ceil_div<int64_t>(p.B * bands * p.W, kSlots<V>);
  const dim3 grid(static_cast<unsigned>(groups * tiles));
  return HYBRID_LAUNCH((forward_kernel<T, K, V>), grid, dim3(kThreads), 0, stream, p, tiles, bands);
}

// As many channels at once as registers hold kernels for.
template <class T, int K, int V>
int launch_packed_forward(const RegionMixParams& p, void* stream) {
  return is_packed<T, V>(p) ? launch_forward<T, K, V>(p, stream)
                            : launch_forward<T, K, 1>(p, stream);
}

}  // namespace

template <class T>
int region_mix_forward(const RegionMixParams& p, void* stream) {
  if (p.side == 1) return launch_packed_forward<T, 1, 4>(p, stream);
  if (p.side == 3) return launch_packed_forward<T, 3, 4>(p, stream);
  if (p.side == 5) return launch_packed_forward<T, 5, 2>(p, stream);
  return launch_forward<T, 7, 1>(p, stream);
}

}  // namespace hybrid
