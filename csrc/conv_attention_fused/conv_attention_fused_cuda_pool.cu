// D, a depthwise 3x3 convolution of stride 2, and the gradient of its taps. A thread has V channels
// of a window, 16 bytes of them where x is aligned, and meets its nine pixels; neighbouring windows
// share pixels in the first-level cache. For the taps it keeps nine sums per channel in registers,
// over all windows of its block.
#include "../common/stencil/cuda_sums.cuh"
#include "cuda_launch.cuh"

namespace hybrid {
namespace {

using Params = ConvAttentionFusedParams;

inline int64_t windows_of(const Params& p) { return p.windows.B * p.windows.H2 * p.windows.W2; }

// call(pixel of x, slot) for the slots of a window that lie on the map.
template <class T, class Call>
__device__ __forceinline__ void for_slots(const ConvAttentionParams& w, int window, int c,
                                          const Call& call) {
  const int columns = static_cast<int>(w.W2), rows = static_cast<int>(w.H2);
  const int image = window / columns / rows;
  const int i = window / columns % rows * 2 - 1, j = window % columns * 2 - 1;
#pragma unroll
  for (int slot = 0; slot < kWindowSlots; ++slot) {
    const int y = i + slot / kWindowSide, x = j + slot % kWindowSide;
    if (y >= 0 && y < w.H && x >= 0 && x < w.W) call(pixel_of<T>(w.v, image, y, x) + c, slot);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(const Params p, T* pooled, int tiles, int windows) {
  const Place<V> place(tiles);
  const int window = place.group * kSlots<V> + place.slot;
  if (window >= windows || place.c >= p.windows.C) return;
  const T* taps = static_cast<const T*>(p.dw_weight) + place.c;
  Channels<V> sum;
  for_slots<T>(p.windows, window, place.c, [&](const T* pixel, int slot) {
    sum.add_product(load_channels<V>(pixel), load_channels<V>(taps + slot * p.windows.C));
  });
  store_channels(pooled + window * p.windows.C + place.c, sum);
}

template <class T, int V>
int launch_pool(const Params& p, void* pooled, void* stream) {
  const int64_t windows = windows_of(p), groups = ceil_div<int64_t>(windows, kSlots<V>);
  const dim3 grid(static_cast<unsigned>(groups * channel_tiles(p.windows.C)));
  return HYBRID_LAUNCH((pool_kernel<T, V>), grid, dim3(kThreads), 0, stream, p,
                       static_cast<T*>(pooled), channel_tiles(p.windows.C),
                       static_cast<int>(windows));
}

// Few enough sums for the registers: V is 4 at most.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) tap_kernel(const Params p, const float* grad_pooled,
                                                       int tiles, int windows, Partials partials) {
  const Place<V> place(tiles);
  const bool has_channels = place.c < p.windows.C;
  const int step = static_cast<int>(partials.parts) * kSlots<V>;
  Channels<V> taps[kWindowSlots];
  for (int window = place.group * kSlots<V> + place.slot; has_channels && window < windows;
       window += step) {
    const Channels<V> grad = load_channels<V>(grad_pooled + window * p.windows.C + place.c);
    for_slots<T>(p.windows, window, place.c, [&](const T* pixel, int slot) {
      taps[slot].add_product(load_channels<V>(pixel), grad);
    });
  }
  float* to = partials.data + place.group * partials.row + place.c;
#pragma unroll
  for (int slot = 0; slot < kWindowSlots; ++slot)
    store_block_sum(taps[slot], place.lane, place.slot,
                    has_channels ? to + slot * p.windows.C : nullptr);
}

template <class T, int V>
int launch_tap_sums(const Params& p, const FusedWorkspace& from, void* stream) {
  const int64_t windows = windows_of(p), groups = ceil_div<int64_t>(windows, kSlots<V>);
  const Partials partials{from.partial, partial_blocks(groups, 4), kWindowSlots * p.windows.C};
  const dim3 grid(static_cast<unsigned>(partials.parts * channel_tiles(p.windows.C)));
  if (const int error =
          HYBRID_LAUNCH((tap_kernel<T, V>), grid, dim3(kThreads), 0, stream, p, from.grad_pooled,
                        channel_tiles(p.windows.C), static_cast<int>(windows), partials))
    return error;
  return fold(partials, 0, partials.row, p.grad_dw, stream);
}

// Whether V channels of x and of contiguous tensors, 16-byte aligned but for the taps, can move.
template <class T, int V>
bool is_packed(const Params& p) {
  return is_packed<T, V>(p.windows.v, p.windows.C) &&
         reinterpret_cast<uintptr_t>(p.dw_weight) % (V * sizeof(T)) == 0;
}

}  // namespace

template <class T>
int launch_pool(const Params& p, const FusedWorkspace& to, void* stream) {
  constexpr int kVector = 16 / sizeof(T);
  return is_packed<T, kVector>(p) ? launch_pool<T, kVector>(p, to.pooled, stream)
                                  : launch_pool<T, 1>(p, to.pooled, stream);
}

template <class T>
int launch_tap_sums(const Params& p, const FusedWorkspace& from, void* stream) {
  return is_packed<T, 4>(p) ? launch_tap_sums<T, 4>(p, from, stream)
                            : launch_tap_sums<T, 1>(p, from, stream);
}

template int launch_pool<float>(const Params&, const FusedWorkspace&, void*);
template int launch_pool<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_pool<__half>(const Params&, const FusedWorkspace&, void*);
template int launch_tap_sums<float>(const Params&, const FusedWorkspace&, void*);
template int launch_tap_sums<__nv_bfloat16>(const Params&, const FusedWorkspace&, void*);
template int launch_tap_sums<__half>(const Params&, const FusedWorkspace&, void*);

}  // namespace hybrid
