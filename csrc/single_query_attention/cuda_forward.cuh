// Forward in two launches: every warp reduces its run of tokens to partial results (the largest
// score, the sum of exponentials and the weighted values of each query: online softmax, base 2),
// then the runs of an image, head and query are merged in a fixed order.
#pragma once

#include "cuda_run.cuh"

namespace hybrid {
namespace {

template <class G>
int forward_shared_bytes(const SingleQueryAttentionParams& p) {
  using W = WarpTile<G>;
  const int elements = W::groups(p.G) * W::kQueryTile + kWarps * W::token_tiles(p);
  return elements * W::kElement + G::kScratch * 4;
}

// Blocks per multiprocessor that the registers must allow: left to itself, ptxas spills for more.
template <class G>
constexpr int kForwardBlocks = G::E == 128 ? 3 : 4;

template <class G>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<G>)
    forward_kernel(const SingleQueryAttentionParams p, const Vectors vectors, const Runs runs,
                   const uint8_t* mask) {
  using T = typename G::T;
  using W = WarpTile<G>;
  HYBRID_DYN_SMEM(raw);
  const int groups = W::groups(p.G);
  T *query = reinterpret_cast<T*>(raw), *tiles = query + groups * W::kQueryTile;
  T* key = tiles + threadIdx.x / 32 * W::token_tiles(p);
  T* value = p.values_are_keys ? key : key + W::kTokenTile;
  float* scratch = reinterpret_cast<float*>(tiles + kWarps * W::token_tiles(p));
  const Work work(p, runs);
  if (work.image >= p.B) return;
  load_queries<G>(query, vectors.query, p.query, work, p.G, p.d);

  typename G::Out out[W::kGroups];
  float maximum[W::kGroups][G::kRows], sum[W::kGroups][G::kRows];
#pragma unroll
  for (int i = 0; i < W::kGroups; ++i)
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) maximum[i][r] = -INFINITY, sum[i][r] = 0.0f;
#pragma unroll 1
  for (int64_t first = work.first; first < work.end; first += W::kTokens) {
    const int count = static_cast<int>(min(int64_t{W::kTokens}, work.end - first));
    load_tokens<G>(key, vectors.k, p.k, work, first, count, p.d);
    if (!p.values_are_keys) load_tokens<G>(value, vectors.v, p.v, work, first, count, p.dv);
    const uint32_t keys = keys_of(p, mask, work, first, count);
    arrive();
#pragma unroll
    for (int i = 0; i < W::kGroups; ++i) {
      if (i >= groups) break;
      const int rows = W::rows(p.G, i);
      typename G::Scores x;
      G::score(x, query + i * W::kQueryTile, key, rows, p.d);
      to_logits<G>(x, static_cast<float>(p.scale) * kLog2e, keys);
      online_softmax<G, false>(x, out[i], maximum[i], sum[i]);
      G::multiply(out[i], x, scratch, value, rows, count, p.dv);
    }
    __syncwarp();  // the tiles have been read
  }

  float* partial = static_cast<float*>(p.workspace) + work.index * p.G * partial_floats(p, false);
#pragma unroll
  for (int i = 0; i < W::kGroups; ++i) {
    if (i >= groups) break;
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) {
      const float total = row_sum<G::kRowLanes>(sum[i][r]);
      const int g = i * W::kOwn + G::own(r);
      if (g >= p.G) continue;
      float* row = partial + g * partial_floats(p, false);
      if (threadIdx.x % G::kRowLanes == 0) row[0] = maximum[i][r], row[1] = total;
#pragma unroll
      for (int n = 0; n < G::kOutCols; ++n)
        if (G::out_col(n) < p.dv) row[2 + G::out_col(n)] = out[i].at(r, n);
    }
  }
}

// A block merges one image, head and query. Thread (part, channel) takes every parts-th run.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const SingleQueryAttentionParams p, int64_t runs) {
  HYBRID_SHARED(float, tops, [kMergeThreads]);
  HYBRID_SHARED(float, totals, [kMergeThreads]);
  HYBRID_SHARED(float, sums, [kMergeThreads]);
  const int64_t pair = blockIdx.x / p.G, image = pair / p.h;
  const int g = static_cast<int>(blockIdx.x % p.G), head = static_cast<int>(pair % p.h);
  const int parts = kMergeThreads / p.dv, part = threadIdx.x / p.dv, c = threadIdx.x % p.dv;
  const int64_t step = int64_t{p.h} * p.G * partial_floats(p, false);  // from run to run
  const float* partial = static_cast<const float*>(p.workspace) + image * runs * step +
                         (head * p.G + g) * partial_floats(p, false);
  MergedRuns merged;
  for (int64_t run = part; part < parts && run < runs; run += parts) {
    const float* row = partial + run * step;
    merged.add(row[0], row[1], row[2 + c]);
  }
  tops[threadIdx.x] = merged.top;
  totals[threadIdx.x] = merged.total;
  sums[threadIdx.x] = merged.sum;
  __syncthreads();
  if (part > 0) return;
  for (int i = 1; i < parts; ++i) {
    const int other = i * p.dv + c;
    merged.add(tops[other], totals[other], sums[other]);
  }
  T* out = static_cast<T*>(p.out) + ((image * p.G + g) * p.h + head) * p.dv;
  out[c] = Convert<T>::from_float(merged.sum / merged.total);
  if (c == 0)
    static_cast<float*>(p.lse)[pair * p.G + g] = (merged.top + log2f(merged.total)) * kLn2;
}

}  // namespace

template <class T>
int single_query_forward(const SingleQueryAttentionParams& p, const uint8_t* mask, void* stream) {
  return by_width<T>(p, [&](auto tile) {
    using G = typename decltype(tile)::G;
    const Runs runs(p);
    const int bytes = forward_shared_bytes<G>(p);
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(works(p, runs), kWarps)));
    if (int error = HYBRID_SMEM_OPT_IN((forward_kernel<G>), bytes)) return error;
    if (int error = HYBRID_LAUNCH((forward_kernel<G>), grid, dim3(kThreads), bytes, stream, p,
                                  Vectors(p), runs, mask))
      return error;
    return HYBRID_LAUNCH((merge_kernel<T>), dim3(static_cast<unsigned>(p.B * p.h * p.G)),
                         dim3(kMergeThreads), 0, stream, p, runs.number);
  });
}

}  // namespace hybrid
