// The one header CUDA kernels include. A kernel file sees this and its op's plain <op>.h, nothing
// else, so that nvcc needs no torch and g++ can compile the very same file against the host
// emulator (tests/host_cuda), which declares the same names. Written through this header are
//
//   HYBRID_SHARED(float, tile, [32][33]);  // __shared__ float tile[32][33]
//   HYBRID_DYN_SMEM(raw);                  // dynamic shared memory: unsigned char*, 128-aligned
//   if (int e = HYBRID_SMEM_OPT_IN((kernel<T>), bytes)) return e;  // for more than 48 KiB of it
//   return HYBRID_LAUNCH((kernel<T>), dim3(x, y), dim3(128), bytes, stream, arg, arg);
//
// (the kernel in parentheses, because its template arguments may hold commas; both give 0 or a
// cudaError_t) and the PTX instructions below. All else is ordinary CUDA C++: threadIdx,
// __syncthreads, __shfl_*_sync, atomics, __expf, ...
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define HYBRID_UNPAREN(...) __VA_ARGS__
#define HYBRID_SHARED(T, name, dims) __shared__ T name dims
#define HYBRID_DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#define HYBRID_LAUNCH(kernel, grid, block, smem, stream, ...)                             \
  (HYBRID_UNPAREN kernel<<<(grid), (block), (smem), static_cast<cudaStream_t>(stream)>>>( \
       __VA_ARGS__),                                                                      \
   static_cast<int>(cudaGetLastError()))
#define HYBRID_SMEM_OPT_IN(kernel, bytes)                          \
  ((bytes) <= 48 * 1024                                            \
       ? 0                                                         \
       : static_cast<int>(cudaFuncSetAttribute(                    \
             reinterpret_cast<const void*>(HYBRID_UNPAREN kernel), \
             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))))

namespace hybrid {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8x8 matrices of 16-bit elements, from shared memory into the registers of a warp. Lane l
// passes the address of row l % 8 of matrix l / 8 (16 bytes, 16-aligned); it receives in r[i] the
// elements (l / 4, l % 4 * 2) and (l / 4, l % 4 * 2 + 1) of matrix i. All 32 lanes take part.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, with every 8x8 matrix transposed on the way.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// c (16x8, float32) += a (16x16) b (16x8) on the tensor cores; T is __nv_bfloat16 or __half.
// With g = l / 4 and t = l % 4 * 2, lane l holds, as pairs of neighbouring columns (rows for b):
//   c[0..1] row g, columns t..t+1           c[2..3] row g + 8
//   a[0] row g, columns t..t+1   a[1] row g + 8   a[2] row g, columns t+8..t+9   a[3] both
//   b0 rows t..t+1, column g     b1 rows t+8..t+9, column g
// so a = ldmatrix_x4 of the tile [rows][columns], b = ldmatrix_x4_trans of [rows][columns] or
// ldmatrix_x4 of [columns][rows].
template <class T>
__device__ __forceinline__ void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1);

template <>
__device__ __forceinline__ void mma_16816<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                         uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_16816<__half>(float (&c)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x in one instruction, to about 2^-22; results below 2^-126 become zero. (exp2f keeps those and
// takes four instructions.)
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes from global to shared memory without passing through registers; both addresses are
// 16-aligned. Only src_bytes (0..16) are read, zeros fill the rest. The bytes have arrived for
// the calling thread after a cp_async_wait, for the block after the __syncthreads that follows.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, int src_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)),
               "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
               : "memory");
}

// Closes the calling thread's group of copies (an empty one counts too).
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all but the newest N groups of the calling thread have arrived.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace hybrid

#else

#include "host_cuda.h"  // tests/host_cuda: the same names for g++

#endif

namespace hybrid {

// Element types: arithmetic is float32, memory is T. Pair is two neighbours as one access; for the
// 16-bit types it is also a register of ldmatrix and mma (first element in the low half).
template <class T>
struct Convert;

template <>
struct Convert<float> {
  using Pair = float2;
  static __host__ __device__ __forceinline__ float to_float(float x) { return x; }
  static __host__ __device__ __forceinline__ float from_float(float x) { return x; }
  static __host__ __device__ __forceinline__ Pair pack2(float a, float b) {
    return make_float2(a, b);
  }
};

template <>
struct Convert<__nv_bfloat16> {
  using Pair = uint32_t;
  static __host__ __device__ __forceinline__ float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
  }
  static __host__ __device__ __forceinline__ __nv_bfloat16 from_float(float x) {
    return __float2bfloat16_rn(x);
  }
  static __host__ __device__ __forceinline__ Pair pack2(float a, float b) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    Pair pair;
    memcpy(&pair, &v, sizeof pair);
    return pair;
  }
};

template <>
struct Convert<__half> {
  using Pair = uint32_t;
  static __host__ __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
  static __host__ __device__ __forceinline__ __half from_float(float x) {
    return __float2half_rn(x);
  }
  static __host__ __device__ __forceinline__ Pair pack2(float a, float b) {
    const __half2 v = __floats2half2_rn(a, b);
    Pair pair;
    memcpy(&pair, &v, sizeof pair);
    return pair;
  }
};

}  // namespace hybrid
