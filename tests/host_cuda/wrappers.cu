// One small kernel per wrapper and per emulated group of intrinsics: words in, words out. Compiled
// by g++ it shows what the emulator does, by nvcc what a GPU does. tests/test_host_cuda.py holds
// the first against numpy, compare_wrappers.py the two against each other.
#include "common/device.h"

namespace hybrid {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

template <bool kTranspose>
__global__ void matrices(const uint32_t* in, uint32_t* out) {  // in: 32 rows of 8 half words
  HYBRID_SHARED(uint4, rows, [32]);
  rows[threadIdx.x] = reinterpret_cast<const uint4*>(in)[threadIdx.x];
  __syncthreads();
  uint32_t r[4];
  if (kTranspose)
    ldmatrix_x4_trans(r, &rows[threadIdx.x]);
  else
    ldmatrix_x4(r, &rows[threadIdx.x]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = r[i];
}

// in: per lane 4 words of a, 2 of b, 4 of c.
template <class T>
__global__ void multiply(const uint32_t* in, uint32_t* out) {
  const uint32_t* const mine = in + threadIdx.x * 10;
  const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(mine[6 + i]);
  mma_16816<T>(c, a, mine[4], mine[5]);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = __float_as_uint(c[i]);
}

// in: two arrays of 32 x 16 bytes. Lane l copies l % 17 bytes of its part of each, in two groups;
// out: the first array after the wait that leaves one group open, the second after the last wait.
__global__ void async_copies(const uint32_t* in, uint32_t* out) {
  HYBRID_SHARED(uint4, tiles, [2][32]);
  const int lane = threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    cp_async16(&tiles[i][lane], in + (i * 32 + lane) * 4, lane % 17);
    cp_async_commit();
  }
  cp_async_wait<1>();
  reinterpret_cast<uint4*>(out)[lane] = tiles[0][lane];
  cp_async_wait<0>();
  reinterpret_cast<uint4*>(out)[32 + lane] = tiles[1][lane];
}

// in: 32 values, 32 operands. out: (width 32, 8) x (index, xor, down, up) x 32 lanes.
__global__ void shuffles(const uint32_t* in, uint32_t* out) {
  const int lane = threadIdx.x;
  const uint32_t value = in[lane];
  const int operand = static_cast<int>(in[32 + lane]);
  for (int width = 32; width >= 8; width -= 24, out += 128) {
    out[lane] = __shfl_sync(kAll, value, operand, width);
    out[32 + lane] = __shfl_xor_sync(kAll, value, operand, width);
    out[64 + lane] = __shfl_down_sync(kAll, value, operand, width);
    out[96 + lane] = __shfl_up_sync(kAll, value, operand, width);
  }
}

// in: 128 predicates. out: per thread ballot, any, all of its warp, ballot of its half warp,
// count, and, or of the block.
__global__ void votes(const uint32_t* in, uint32_t* out) {
  const int predicate = static_cast<int>(in[threadIdx.x]);
  const uint32_t half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  uint32_t* const mine = out + threadIdx.x * 7;
  mine[0] = __ballot_sync(kAll, predicate);
  mine[1] = __any_sync(kAll, predicate) != 0;
  mine[2] = __all_sync(kAll, predicate) != 0;
  mine[3] = __ballot_sync(half, predicate);
  mine[4] = __syncthreads_count(predicate);
  mine[5] = __syncthreads_and(predicate) != 0;
  mine[6] = __syncthreads_or(predicate) != 0;
}

// in: 128 words. out: sum, max, min as int, one thread's exchange, sum of floats, winners of a CAS.
__global__ void atomics(const uint32_t* in, uint32_t* out) {
  HYBRID_SHARED(uint32_t, words, [6]);
  const uint32_t value = in[threadIdx.x];
  if (threadIdx.x < 6) words[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&words[0], value);
  atomicMax(reinterpret_cast<int*>(&words[1]), static_cast<int>(value));
  atomicMin(reinterpret_cast<int*>(&words[2]), static_cast<int>(value));
  if (threadIdx.x == 5) atomicExch(&words[3], value);
  atomicAdd(reinterpret_cast<float*>(&words[4]), static_cast<float>(value % 16));
  const uint32_t before = atomicCAS(&words[5], 0u, 1u);  // only the first sees 0
  const int winners = __syncthreads_count(before == 0);
  if (threadIdx.x < 5) out[threadIdx.x] = words[threadIdx.x];
  if (threadIdx.x == 5) out[5] = winners;
}

// in: 128 floats. out, per thread: bfloat16 and float16 bits, the pairs with the next value, back
// to float32.
__global__ void conversions(const uint32_t* in, uint32_t* out) {
  const float x = __uint_as_float(in[threadIdx.x]);
  const float y = __uint_as_float(in[(threadIdx.x + 1) % 128]);
  const __nv_bfloat16 b = Convert<__nv_bfloat16>::from_float(x);
  const __half h = Convert<__half>::from_float(x);
  uint32_t* const mine = out + threadIdx.x * 6;
  uint16_t bits;
  memcpy(&bits, &b, sizeof bits);
  mine[0] = bits;
  memcpy(&bits, &h, sizeof bits);
  mine[1] = bits;
  mine[2] = Convert<__nv_bfloat16>::pack2(x, y);
  mine[3] = Convert<__half>::pack2(x, y);
  mine[4] = __float_as_uint(Convert<__nv_bfloat16>::to_float(b));
  mine[5] = __float_as_uint(Convert<__half>::to_float(h));
}

__global__ void bits(const uint32_t* in, uint32_t* out) {
  const uint32_t x = in[threadIdx.x];
  uint32_t* const mine = out + threadIdx.x * 3;
  mine[0] = __popc(x);
  mine[1] = __ffs(static_cast<int>(x));
  mine[2] = __clz(static_cast<int>(x));
}

// in: 128 floats in (0, 10]. Approximate on a GPU.
__global__ void fast_maths(const uint32_t* in, uint32_t* out) {
  const float x = __uint_as_float(in[threadIdx.x]);
  const float y[7] = {__expf(x),           __logf(x),    __log2f(x), exp2_approx(x),
                      __fdividef(1.5f, x), __frcp_rn(x), rsqrtf(x)};
  for (int i = 0; i < 7; ++i) out[threadIdx.x * 7 + i] = __float_as_uint(y[i]);
}

using Kernel = void (*)(const uint32_t*, uint32_t*);

struct Wrapper {
  const char* name;
  Kernel kernel;
  int threads, inputs, outputs;  // words
};

const Wrapper kWrappers[] = {
    {"ldmatrix_x4", matrices<false>, 32, 128, 128},
    {"ldmatrix_x4_trans", matrices<true>, 32, 128, 128},
    {"mma_16816<bfloat16>", multiply<__nv_bfloat16>, 32, 320, 128},
    {"mma_16816<float16>", multiply<__half>, 32, 320, 128},
    {"cp_async16", async_copies, 32, 256, 256},
    {"shuffles", shuffles, 32, 64, 256},
    {"votes", votes, 128, 128, 896},
    {"atomics", atomics, 128, 128, 6},
    {"conversions", conversions, 128, 128, 768},
    {"bits", bits, 128, 128, 384},
    {"fast_maths", fast_maths, 128, 128, 896},
};

int launch(const Wrapper& w, const uint32_t* in, uint32_t* out) {
  return HYBRID_LAUNCH((w.kernel), dim3(1), dim3(w.threads), 0, nullptr, in, out);
}

}  // namespace
}  // namespace hybrid

#define WRAPPER_API extern "C" __attribute__((visibility("default")))

WRAPPER_API int wrapper_count() { return sizeof hybrid::kWrappers / sizeof hybrid::kWrappers[0]; }
WRAPPER_API const char* wrapper_name(int i) { return hybrid::kWrappers[i].name; }
WRAPPER_API int wrapper_inputs(int i) { return hybrid::kWrappers[i].inputs; }
WRAPPER_API int wrapper_outputs(int i) { return hybrid::kWrappers[i].outputs; }

// in and out lie in the host's memory. Returns 0 or a cudaError_t.
WRAPPER_API int wrapper_run(int i, const uint32_t* in, uint32_t* out) {
  const hybrid::Wrapper& w = hybrid::kWrappers[i];
#if defined(__CUDACC__)
  uint32_t *device_in = nullptr, *device_out = nullptr;
  const size_t in_bytes = w.inputs * sizeof *in, out_bytes = w.outputs * sizeof *out;
  int error = cudaMalloc(&device_in, in_bytes);
  if (!error) error = cudaMalloc(&device_out, out_bytes);
  if (!error) error = cudaMemcpy(device_in, in, in_bytes, cudaMemcpyHostToDevice);
  if (!error) error = hybrid::launch(w, device_in, device_out);
  if (!error) error = cudaMemcpy(out, device_out, out_bytes, cudaMemcpyDeviceToHost);
  cudaFree(device_in);
  cudaFree(device_out);
  return error;
#else
  return hybrid::launch(w, in, out);
#endif
}
