// Tile arithmetic of 128 threads on rows in shared memory, in two kinds with one interface, so that
// the attention kernels are written once:
//   Mma   bfloat16, float16: tensor cores, mma.sync m16n8k16, float32 accumulation
//   Fma   float32: register-blocked multiply-adds, never TF32
//
// A block owns R rows and streams C rows past them. Scores are R x C, outputs R x E (the head width
// rounded up); both stay in registers, a thread holding kRows rows of them, and every row lies
// within one warp: a row's maximum or sum is a few shuffles, and a warp may reuse the shared memory
// of its own rows without a block barrier. Rows of a tile are LD elements apart, one 16-byte vector
// more than E, which puts eight rows into eight different groups of banks.
#pragma once

#include "../device.h"
#include "../types.h"

namespace hybrid {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// ceil_div of types.h is for the host alone.
constexpr __host__ __device__ int divide_up(int a, int b) { return (a + b - 1) / b; }

// Over the `lanes` neighbouring lanes that share a row.
template <int lanes>
__device__ __forceinline__ float row_max(float x) {
  for (int o = 1; o < lanes; o *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}
template <int lanes>
__device__ __forceinline__ float row_sum(float x) {
  for (int o = 1; o < lanes; o *= 2) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

// Warp w owns rows 16 w .. 16 w + 15. Scores and outputs have the layout of mma's c: with g = l / 4
// and t = l % 4 * 2, rows g and g + 8, columns t and t + 1 of every group of eight.
template <class T_, int E_, int C_>
struct Mma {
  using T = T_;
  static constexpr int R = 64, C = C_, E = E_, LD = E + 8;
  static constexpr int kRows = 2, kCols = C / 4, kOutCols = E / 4, kRowLanes = 4;
  static constexpr int kScratch = 0;  // floats that multiply needs
  // Blocks per multiprocessor that the registers must allow, and the largest window in one tile.
  static constexpr int kForwardBlocks = E == 32 ? 6 : E == 64 ? 4 : 3;
  static constexpr int kWholeBlocks = E == 32 ? 4 : E == 64 ? 3 : 2, kWholeSide = 8;
  // The published tile is [streamed][own] with rows of 68 floats: writing it transposed from the
  // c layout touches 32 different banks, and pairs of it are an a operand.
  static constexpr int kOwnStride = 1, kStreamStride = R + 4, kPublished = C * kStreamStride;

  struct Scores {
    float v[C / 8][4] = {};
    __device__ __forceinline__ float& at(int r, int n) { return v[n / 2][2 * r + n % 2]; }
  };
  struct Out {
    float v[E / 8][4] = {};
    __device__ __forceinline__ float& at(int r, int n) { return v[n / 2][2 * r + n % 2]; }
  };

  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int warp_row(int i) { return threadIdx.x / 32 * 16 + i; }
  static __device__ __forceinline__ int row(int r) { return warp_row(lane() / 4 + 8 * r); }
  static __device__ __forceinline__ int first_row(int r) { return warp_row(8 * r); }
  // row(r) = warp_row(own(r)). `rows` for products in which every warp owns `count` rows.
  static __device__ __forceinline__ int own(int r) { return lane() / 4 + 8 * r; }
  static __device__ __forceinline__ int rows_of_all_warps(int) { return R; }
  static __device__ __forceinline__ int col(int n) { return n / 2 * 8 + lane() % 4 * 2 + n % 2; }
  static __device__ __forceinline__ int out_col(int n) { return col(n); }

  // x += a b^T over the e columns of both. Warps that own nothing of the first `rows` rows rest.
  static __device__ __forceinline__ void score(Scores& x, const T* a, const T* b, int rows, int e) {
    if (warp_row(0) >= rows) return;
    const int l = lane();
#pragma unroll
    for (int k = 0; k < E / 16; ++k) {
      if (k * 16 >= e) break;
      uint32_t fa[4];
      ldmatrix_x4(fa, a + warp_row(l % 16) * LD + k * 16 + l / 16 * 8);
#pragma unroll
      for (int j = 0; j < C / 16; ++j) {
        uint32_t fb[4];
        ldmatrix_x4(fb, b + (j * 16 + l / 16 * 8 + l % 8) * LD + k * 16 + l / 8 % 2 * 8);
        mma_16816<T>(x.v[2 * j], fa, fb[0], fb[1]);
        mma_16816<T>(x.v[2 * j + 1], fa, fb[2], fb[3]);
      }
    }
  }

  // out += x b. The c layout of two score tiles is the a layout of one 16 x 16 operand.
  static __device__ __forceinline__ void multiply(Out& out, Scores& x, float*, const T* b, int rows,
                                                  int cols, int e) {
    if (warp_row(0) >= rows) return;
#pragma unroll
    for (int k = 0; k < C / 16; ++k) {
      if (k * 16 >= cols) break;
      const float *left = x.v[2 * k], *right = x.v[2 * k + 1];
      const uint32_t fa[4] = {
          Convert<T>::pack2(left[0], left[1]), Convert<T>::pack2(left[2], left[3]),
          Convert<T>::pack2(right[0], right[1]), Convert<T>::pack2(right[2], right[3])};
      multiply_slice(out, fa, b + k * 16 * LD, e);
    }
  }

  // The same for a published x.
  static __device__ __forceinline__ void multiply_own(Out& out, Scores& x, const float*, const T* b,
                                                      int rows, int cols, int e) {
    multiply(out, x, nullptr, b, rows, cols, e);
  }

  // Makes x readable for the whole block, after a barrier.
  static __device__ __forceinline__ void publish(float* tile, Scores& x) {
#pragma unroll
    for (int n = 0; n < kCols; ++n)
#pragma unroll
      for (int r = 0; r < kRows; ++r) tile[col(n) * kStreamStride + row(r)] = x.at(r, n);
  }

  // out += x^T b for the published x: the rows of out are the streamed ones.
  static __device__ __forceinline__ void multiply_published(Out& out, const float* tile, const T* b,
                                                            int rows, int cols, int e) {
    static_assert(R == C, "every streamed row needs an owner");
    if (warp_row(0) >= rows) return;
    const int l = lane();
#pragma unroll
    for (int k = 0; k < R / 16; ++k) {
      if (k * 16 >= cols) break;
      uint32_t fa[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* from =
            tile + warp_row(l / 4 + i % 2 * 8) * kStreamStride + k * 16 + i / 2 * 8 + l % 4 * 2;
        fa[i] = Convert<T>::pack2(from[0], from[1]);
      }
      multiply_slice(out, fa, b + k * 16 * LD, e);
    }
  }

 private:
  // out += a b for 16 rows of b.
  static __device__ __forceinline__ void multiply_slice(Out& out, const uint32_t (&fa)[4],
                                                        const T* b, int e) {
    const int l = lane();
#pragma unroll
    for (int j = 0; j < E / 16; ++j) {
      if (j * 16 >= e) break;
      uint32_t fb[4];
      ldmatrix_x4_trans(fb, b + l % 16 * LD + j * 16 + l / 16 * 8);
      mma_16816<T>(out.v[2 * j], fa, fb[0], fb[1]);
      mma_16816<T>(out.v[2 * j + 1], fa, fb[2], fb[3]);
    }
  }
};

// Thread (y, x) of 16 x 8 owns rows y + 16 i; its score columns are x + 8 j, its output columns
// groups of four, 32 apart. A 64 x 64 score tile is thus a 4 x 8 block of sums per thread, fed by
// twelve 16-byte loads for 128 multiply-adds. Rows beyond the window are skipped by whole warps.
template <int E_, int R_>
struct Fma {
  using T = float;
  static constexpr int R = R_, C = R_, E = E_, LD = E + 4;
  static constexpr int kRows = R / 16, kCols = C / 8, kOutCols = E / 8, kRowLanes = 8;
  // The published tile is [own][streamed]; a warp also passes its scores through its own rows.
  static constexpr int kOwnStride = C + 8, kStreamStride = 1, kPublished = R * kOwnStride;
  static constexpr int kScratch = kPublished;
  static constexpr int kForwardBlocks = 3;
  static constexpr int kWholeBlocks = 3, kWholeSide = R == 64 ? 8 : 5;

  struct Scores {
    float v[kRows][kCols] = {};
    __device__ __forceinline__ float& at(int r, int n) { return v[r][n]; }
  };
  struct Out {
    float v[kRows][kOutCols] = {};
    __device__ __forceinline__ float& at(int r, int n) { return v[r][n]; }
  };

  static __device__ __forceinline__ int x() { return threadIdx.x % 8; }
  static __device__ __forceinline__ int warp_row(int i) {
    return i / 4 * 16 + threadIdx.x / 32 * 4 + i % 4;
  }
  static __device__ __forceinline__ int row(int r) { return threadIdx.x / 8 + 16 * r; }
  static __device__ __forceinline__ int first_row(int r) { return warp_row(4 * r); }
  static __device__ __forceinline__ int own(int r) { return threadIdx.x / 8 % 4 + 4 * r; }
  static __device__ __forceinline__ int rows_of_all_warps(int count) {
    return divide_up(count, 4) * 16;
  }
  static __device__ __forceinline__ int col(int n) { return x() + 8 * n; }
  static __device__ __forceinline__ int out_col(int n) { return n / 4 * 32 + x() * 4 + n % 4; }
  static __device__ __forceinline__ float4 four(const float* p) {
    return *reinterpret_cast<const float4*>(p);
  }

  static __device__ __forceinline__ void score(Scores& s, const float* a, const float* b, int rows,
                                               int e) {
    for (int k = 0; k < e; k += 4) {
      float4 fb[kCols];
#pragma unroll
      for (int n = 0; n < kCols; ++n) fb[n] = four(b + col(n) * LD + k);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first_row(r) >= rows) break;
        const float4 fa = four(a + row(r) * LD + k);
#pragma unroll
        for (int n = 0; n < kCols; ++n) {
          float& sum = s.v[r][n];
          sum = fmaf(fa.x, fb[n].x, sum);
          sum = fmaf(fa.y, fb[n].y, sum);
          sum = fmaf(fa.z, fb[n].z, sum);
          sum = fmaf(fa.w, fb[n].w, sum);
        }
      }
    }
  }

  static __device__ __forceinline__ void multiply(Out& out, Scores& s, float* tile, const float* b,
                                                  int rows, int cols, int e) {
    publish(tile, s);
    __syncwarp();
    multiply_own(out, s, tile, b, rows, cols, e);
  }

  static __device__ __forceinline__ void multiply_own(Out& out, Scores&, const float* tile,
                                                      const float* b, int rows, int cols, int e) {
    for (int k = 0; k < cols; k += 4) {
      float4 fa[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) fa[r] = four(tile + row(r) * kOwnStride + k);
      const float* from = b + k * LD;
      multiply_row(out, from, rows, e, [&](int r) { return fa[r].x; });
      multiply_row(out, from + LD, rows, e, [&](int r) { return fa[r].y; });
      multiply_row(out, from + 2 * LD, rows, e, [&](int r) { return fa[r].z; });
      multiply_row(out, from + 3 * LD, rows, e, [&](int r) { return fa[r].w; });
    }
  }

  static __device__ __forceinline__ void publish(float* tile, Scores& s) {
    __syncwarp();  // the warp may still read what its rows held
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int n = 0; n < kCols; ++n) tile[row(r) * kOwnStride + col(n)] = s.v[r][n];
  }

  static __device__ __forceinline__ void multiply_published(Out& out, const float* tile,
                                                            const float* b, int rows, int cols,
                                                            int e) {
    for (int k = 0; k < cols; ++k)
      multiply_row(out, b + k * LD, rows, e, [&](int r) { return tile[k * kOwnStride + row(r)]; });
  }

 private:
  // out += a b for one row of b.
  template <class A>
  static __device__ __forceinline__ void multiply_row(Out& out, const float* b, int rows, int e,
                                                      const A& a) {
    float fa[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) fa[r] = a(r);
#pragma unroll
    for (int j = 0; j < E / 32; ++j) {
      if (j * 32 >= e) break;
      const float4 fb = four(b + j * 32 + x() * 4);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (first_row(r) >= rows) break;
        float* sum = out.v[r] + 4 * j;
        sum[0] = fmaf(fa[r], fb.x, sum[0]);
        sum[1] = fmaf(fa[r], fb.y, sum[1]);
        sum[2] = fmaf(fa[r], fb.z, sum[2]);
        sum[3] = fmaf(fa[r], fb.w, sum[3]);
      }
    }
  }
};

template <class G>
__device__ __forceinline__ float tile_row_max(typename G::Scores& x, int r) {
  float highest = -INFINITY;
#pragma unroll
  for (int n = 0; n < G::kCols; ++n) highest = fmaxf(highest, x.at(r, n));
  return row_max<G::kRowLanes>(highest);
}

// What to subtract in the exponent: a row of -inf alone gives zeros, not exp(inf - inf).
__device__ __forceinline__ float finite_base(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

// factor[r] * out, in the data's type, to the shared rows that this warp owns.
template <class G>
__device__ __forceinline__ void stage(typename G::T* tile, typename G::Out& out,
                                      const float (&factor)[G::kRows]) {
  using Pair = typename Convert<typename G::T>::Pair;
  __syncwarp();
#pragma unroll
  for (int r = 0; r < G::kRows; ++r)
#pragma unroll
    for (int n = 0; n < G::kOutCols; n += 2)
      *reinterpret_cast<Pair*>(tile + G::row(r) * G::LD + G::out_col(n)) =
          Convert<typename G::T>::pack2(out.at(r, n) * factor[r], out.at(r, n + 1) * factor[r]);
  __syncwarp();
}

// Logits -> exp2(logit - maximum), updating the row statistics; what the earlier tiles left in sum
// and out is rescaled to the new maximum, unless this is the only tile.
template <class G, bool kOnly>
__device__ __forceinline__ void online_softmax(typename G::Scores& x, typename G::Out& out,
                                               float (&maximum)[G::kRows], float (&sum)[G::kRows]) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const float before = maximum[r];
    maximum[r] = fmaxf(before, tile_row_max<G>(x, r));
    const float base = finite_base(maximum[r]);
    if constexpr (!kOnly) {
      const float correction = exp2_approx(before - base);
      sum[r] *= correction;
#pragma unroll
      for (int n = 0; n < G::kOutCols; ++n) out.at(r, n) *= correction;
    }
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) {
      x.at(r, n) = exp2_approx(x.at(r, n) - base);
      sum[r] += x.at(r, n);
    }
  }
}

// x: logits -> P. y: dout v^T -> dS. Where a query does not exist dout is zero, so that whatever
// stands in its row of P and dS adds nothing.
template <class G>
__device__ __forceinline__ void softmax_and_gradient(typename G::Scores& x, typename G::Scores& y) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const float base = finite_base(tile_row_max<G>(x, r));
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) sum += x.at(r, n) = exp2_approx(x.at(r, n) - base);
    const float inverse = 1.0f / row_sum<G::kRowLanes>(sum);
    float delta = 0.0f;
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) {
      x.at(r, n) *= inverse;
      delta = fmaf(x.at(r, n), y.at(r, n), delta);
    }
    delta = row_sum<G::kRowLanes>(delta);
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) y.at(r, n) = x.at(r, n) * (y.at(r, n) - delta);
  }
}

// Statistics of a tile of queries: log-sum-exp in base 2 and delta.
struct QueryStats {
  float *lse, *delta;
};

// Each row is summed by kThreads / kRows neighbouring threads.
template <class G, int kRows>
__device__ __forceinline__ void fill_stats(const QueryStats& stats, const typename G::T* grad_out,
                                           const typename G::T* out, float lse, int queries,
                                           int e) {
  constexpr int kShare = kThreads / kRows;
  const int row = threadIdx.x / kShare, part = threadIdx.x % kShare;
  float sum = 0.0f;
  for (int c = part; row < queries && c < e; c += kShare)
    sum += Convert<typename G::T>::to_float(grad_out[row * G::LD + c]) *
           Convert<typename G::T>::to_float(out[row * G::LD + c]);
  sum = row_sum<kShare>(sum);
  if (part == 0) {
    stats.delta[row] = sum;
    stats.lse[row] = lse * kLog2e;
  }
}

}  // namespace
}  // namespace hybrid
