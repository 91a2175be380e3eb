// Atrous window attention on CUDA: launchers. One launch covers all branches, windows and heads;
// the kernels gather the rows of a window by index, straight from qkv through its strides.
// Which windows a block takes: cuda_window.cuh. Tile arithmetic: cuda_tile.cuh.
#include "cuda_backward_split.cuh"
#include "cuda_backward_whole.cuh"
#include "cuda_forward.cuh"

namespace hybrid {
namespace {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// call(tag of the data type, head width rounded up to 32, 64 or 128)
template <class T, int E>
struct Tile {
  using Type = T;
  static constexpr int kWidth = E;
};

template <class T, class Call>
int by_width(const AtrousAttentionParams& p, const Call& call) {
  if (p.e <= 32) return call(Tile<T, 32>());
  if (p.e <= 64) return call(Tile<T, 64>());
  return call(Tile<T, 128>());
}

template <class Call>
int by_dtype(const AtrousAttentionParams& p, const Call& call) {
  switch (p.dtype) {
    case DType::f32:
      return by_width<float>(p, call);
    case DType::bf16:
      return by_width<__nv_bfloat16>(p, call);
    case DType::f16:
      return by_width<__half>(p, call);
    default:
      return kInvalidValue;
  }
}

// Tiles of the forward, of the backward of small windows and of that of large ones. 128 channels
// take smaller tiles where two accumulators or float32 rows would not fit.
template <class T, int E>
struct Tiles {
  using Forward = Mma<T, E, 64>;
  using Whole = Mma<T, E, 64>;
  using Split = Mma<T, E, E == 128 ? 32 : 64>;
};
template <int E>
struct Tiles<float, E> {
  using Forward = Fma<E, E == 128 ? 32 : 64>;
  using Whole = Forward;
  using Split = Forward;
};

}  // namespace
}  // namespace hybrid

using namespace hybrid;

extern "C" int64_t hk_atrous_attention_workspace_bytes(const AtrousAttentionParams* p) {
  const Plan plan = p->dtype == DType::f32 && p->e > 64 ? backward_plan<Fma<128, 32>>(*p, true)
                                                        : backward_plan<Fma<64, 64>>(*p, true);
  return plan.blocks(*p) * bias_entries(p->P) * static_cast<int64_t>(sizeof(float));
}

extern "C" int hk_atrous_attention_forward(const AtrousAttentionParams* p, void* stream) {
  return by_dtype(*p, [&](auto tile) {
    using Choice = Tiles<typename decltype(tile)::Type, decltype(tile)::kWidth>;
    return launch_forward<typename Choice::Forward>(*p, stream);
  });
}

extern "C" int hk_atrous_attention_backward(const AtrousAttentionParams* p, void* stream) {
  return by_dtype(*p, [&](auto tile) {
    using Choice = Tiles<typename decltype(tile)::Type, decltype(tile)::kWidth>;
    using Whole = typename Choice::Whole;
    return p->P <= Whole::kWholeSide ? launch_backward_whole<Whole>(*p, stream)
                                     : launch_backward_split<typename Choice::Split>(*p, stream);
  });
}
