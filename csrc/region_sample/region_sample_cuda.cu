// Sampling of regions on CUDA. A thread of the forward owns V channels of a region and walks over
// its pixels. A block of the backward owns one tap and many regions, pixel by pixel: it writes what
// the tap gives to their gradients and sums the tap's own.
#include "../common/attention/cuda_dtype.cuh"
#include "../common/stencil/cuda_sums.cuh"
#include "region_sample.h"

namespace hybrid {
namespace {

using Params = RegionSampleParams;

constexpr int64_t kBackwardBlocks = 4096;  // to aim at

struct Region {
  int image, p, q;

  __device__ __forceinline__ Region(const Params& params, int index)
      : q(index % static_cast<int>(params.columns)) {
    const int row = index / static_cast<int>(params.columns), rows = static_cast<int>(params.rows);
    image = row / rows;
    p = row % rows;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const Params p, int tiles) {
  const Place<V> place(tiles);
  const int index = place.group * kSlots<V> + place.slot;
  if (index >= p.B * p.rows * p.columns || place.c >= p.C) return;
  const Region region(p, index);
  const int64_t top = region.p * p.region, left = region.q * p.region;
  const int height = static_cast<int>(p.H - top < p.region ? p.H - top : p.region);
  const int width = static_cast<int>(p.W - left < p.region ? p.W - left : p.region);
  const float* weight = static_cast<const float*>(p.weight) + place.c;
  Channels<V> sum;
  if (p.bias) sum = load_channels<V>(static_cast<const float*>(p.bias) + place.c);
  for (int u = 0; u < height; ++u) {
    const T* x = pixel_of<T>(p.x, region.image, top + u, left) + place.c;
    const float* taps = weight + u * p.region * p.C;
#pragma unroll 4
    for (int v = 0; v < width; ++v)
      sum.add_product(load_channels<V>(taps + v * p.C), load_channels<V>(x + v * p.x.stride[2]));
  }
  store_channels(pixel_of<T>(p.s, region.image, region.p, region.q) + place.c, sum);
}

// Blocks of one tap and tile share the regions among them.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const Params p, int tiles, Partials partials) {
  const Place<V> place(tiles);
  const int side = static_cast<int>(p.region), regions = static_cast<int>(p.B * p.rows * p.columns);
  const int tap = place.group % (side * side), part = place.group / (side * side);
  const int u = tap / side, v = tap % side, parts = static_cast<int>(partials.parts);
  const bool has_channels = place.c < p.C;
  Channels<V> weight, weight_sum, bias_sum;
  if (has_channels)
    weight = load_channels<V>(static_cast<const float*>(p.weight) + tap * p.C + place.c);
  for (int index = part * kSlots<V> + place.slot; has_channels && index < regions;
       index += parts * kSlots<V>) {
    const Region region(p, index);
    const int64_t i = region.p * p.region + u, j = region.q * p.region + v;
    const auto ds =
        load_channels<V>(pixel_of<T>(p.grad, region.image, region.p, region.q) + place.c);
    bias_sum.add(ds);
    if (i >= p.H || j >= p.W) continue;
    if (p.grad_weight)
      weight_sum.add_product(ds, load_channels<V>(pixel_of<T>(p.x, region.image, i, j) + place.c));
    if (!p.grad_x.data) continue;
    Channels<V> dx;
    if (p.dx_init.data) dx = load_channels<V>(pixel_of<T>(p.dx_init, region.image, i, j) + place.c);
    dx.add_product(weight, ds);
    store_channels(pixel_of<T>(p.grad_x, region.image, i, j) + place.c, dx);
  }
  float* sums = partials.data + part * partials.row + place.c;
  if (p.grad_weight)
    store_block_sum(weight_sum, place.lane, place.slot, has_channels ? sums + tap * p.C : nullptr);
  if (p.grad_bias && tap == 0)
    store_block_sum(bias_sum, place.lane, place.slot,
                    has_channels ? sums + partials.row - p.C : nullptr);
}

Partials partials_of(const Params& p) {
  const int64_t taps = p.region * p.region, regions = p.B * p.rows * p.columns;
  const int64_t wanted = ceil_div<int64_t>(kBackwardBlocks, taps * channel_tiles(p.C));
  const int64_t most = ceil_div<int64_t>(regions, kSlots<1>);
  const int64_t terms = (p.grad_weight ? taps : 0) + (p.grad_bias ? 1 : 0);
  return {static_cast<float*>(p.workspace), wanted < most ? wanted : most, terms * p.C};
}

template <class T>
bool is_packed(const Params& p) {
  return is_packed<T, 4>(p.x, p.C) && is_packed<T, 4>(p.grad, p.C) &&
         is_packed<T, 4>(p.dx_init, p.C) && is_packed<4>(p.weight) && is_packed<4>(p.bias);
}

template <class T, int V>
int launch_forward(const Params& p, void* stream) {
  const int64_t groups = ceil_div<int64_t>(p.B * p.rows * p.columns, kSlots<V>);
  const dim3 grid(static_cast<unsigned>(groups * channel_tiles(p.C)));
  return HYBRID_LAUNCH((forward_kernel<T, V>), grid, dim3(kThreads), 0, stream, p,
                       channel_tiles(p.C));
}

template <class T, int V>
int launch_backward(const Params& p, void* stream) {
  const int64_t taps = p.region * p.region;
  const Partials partials = partials_of(p);
  const dim3 grid(static_cast<unsigned>(partials.parts * taps * channel_tiles(p.C)));
  if (int error = HYBRID_LAUNCH((backward_kernel<T, V>), grid, dim3(kThreads), 0, stream, p,
                                channel_tiles(p.C), partials))
    return error;
  if (int error = fold(partials, 0, taps * p.C, p.grad_weight, stream)) return error;
  return fold(partials, partials.row - p.C, p.C, p.grad_bias, stream);
}

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int64_t hk_region_sample_workspace_bytes(const RegionSampleParams* p) {
  return partials_of(*p).bytes();
}

extern "C" int hk_region_sample_forward(const RegionSampleParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    using T = decltype(type);
    return is_packed<T>(*p) ? launch_forward<T, 4>(*p, stream) : launch_forward<T, 1>(*p, stream);
  });
}

extern "C" int hk_region_sample_backward(const RegionSampleParams* p, void* stream) {
  return by_dtype(p->dtype, [&](auto type) {
    using T = decltype(type);
    return is_packed<T>(*p) ? launch_backward<T, 4>(*p, stream) : launch_backward<T, 1>(*p, stream);
  });
}
