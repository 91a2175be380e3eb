// Backward in two launches: every warp writes the gradients of the tokens of its run, and keeps the
// gradient of the queries in registers; then these partial gradients are added in a fixed order.
// Weights and gradients of scores go through shared memory once: from rows of queries, as the
// products yield them, to one token for each lane, which sums the few queries of its own rows.
#pragma once

#include "cuda_run.cuh"

namespace hybrid {
namespace {

// Floats of a warp in shared memory.
template <class G>
struct WarpFloats {
  static constexpr int kStep = G::C + 8;  // from query to query in weights and gradients
  float *weights, *grads;                 // [query][token]
  float *query, *grad_out;                // [query][E]; queries times the scale
  float *lse, *delta;                     // of every query, base 2

  static __host__ __device__ int number(int queries) {
    return 2 * queries * (kStep + G::E) + 2 * kMaxQueries;
  }
  __device__ __forceinline__ WarpFloats(float* floats, int queries) {
    weights = floats;
    grads = weights + queries * kStep;
    query = grads + queries * kStep;
    grad_out = query + queries * G::E;
    lse = grad_out + queries * G::E;
    delta = lse + kMaxQueries;
  }
};

template <class G>
int backward_shared_bytes(const SingleQueryAttentionParams& p) {
  using W = WarpTile<G>;
  const int elements = 2 * W::groups(p.G) * W::kQueryTile + kWarps * W::token_tiles(p);
  return elements * W::kElement + (G::kScratch + kWarps * WarpFloats<G>::number(p.G)) * 4;
}

// What the queries of an image and head are, for the lanes: needs both tiles of queries.
template <class G>
__device__ __forceinline__ void fill_floats(const WarpFloats<G>& floats,
                                            const SingleQueryAttentionParams& p, const Work& work,
                                            const typename G::T* query,
                                            const typename G::T* grad_out) {
  using T = typename G::T;
  using W = WarpTile<G>;
  const int lane = threadIdx.x % 32;
  const auto out = packed_rows<const T>(p.out, p.G, p.h, p.dv, work);
  const float* lse = static_cast<const float*>(p.lse) + (work.image * p.h + work.head) * p.G;
  for (int g = 0; g < p.G; ++g) {
    const int row = g / W::kOwn * W::kQueryTile + G::warp_row(g % W::kOwn) * G::LD;
    float delta = 0.0f;
    for (int c = lane; c < G::E; c += 32) {
      const float u = Convert<T>::to_float(grad_out[row + c]);
      floats.query[g * G::E + c] =
          Convert<T>::to_float(query[row + c]) * static_cast<float>(p.scale);
      floats.grad_out[g * G::E + c] = u;
      if (c < p.dv) delta += u * Convert<T>::to_float(out(g)[c]);
    }
    delta = row_sum<32>(delta);
    if (lane == 0) {
      floats.delta[g] = delta;
      floats.lse[g] = lse[g] * kLog2e;
    }
  }
}

// x: q k^T -> P. y: dout v^T -> dS. Both zero where a token is no key. To the lanes, too.
template <class G>
__device__ __forceinline__ void probabilities(typename G::Scores& x, typename G::Scores& y,
                                              const WarpFloats<G>& floats, float scale,
                                              uint32_t keys, int first_query, int queries) {
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
    const int g = first_query + G::own(r);
    const bool exists = g < queries;
    const float lse = exists ? floats.lse[g] : INFINITY, delta = exists ? floats.delta[g] : 0.0f;
#pragma unroll
    for (int n = 0; n < G::kCols; ++n) {
      const float logit = keys >> G::col(n) & 1 ? x.at(r, n) * scale : -INFINITY;
      x.at(r, n) = exp2_approx(logit - lse);
      y.at(r, n) = x.at(r, n) * (y.at(r, n) - delta);
      if (!exists) continue;
      floats.weights[g * WarpFloats<G>::kStep + G::col(n)] = x.at(r, n);
      floats.grads[g * WarpFloats<G>::kStep + G::col(n)] = y.at(r, n);
    }
  }
}

// Row `token` of a tile becomes the sum over queries of a[token] * rows_a (+ b[token] * rows_b).
template <class G, bool kTwo>
__device__ __forceinline__ void combine(typename G::T* row, int token, int queries, int e,
                                        const float* a, const float* rows_a, const float* b,
                                        const float* rows_b) {
  using T = typename G::T;
  constexpr int kChannels = G::E < 32 ? G::E : 32, kStep = WarpFloats<G>::kStep;
#pragma unroll 1
  for (int first = 0; first < e; first += kChannels) {
    float sums[kChannels] = {};
#pragma unroll 1
    for (int g = 0; g < queries; ++g) {
      const float weight_a = a[g * kStep + token], weight_b = kTwo ? b[g * kStep + token] : 0.0f;
#pragma unroll
      for (int c = 0; c < kChannels; c += 4) {
        const int from = g * G::E + first + c;
        const float4 u = *reinterpret_cast<const float4*>(rows_a + from);
        const float other[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[c + i] = fmaf(weight_a, other[i], sums[c + i]);
        if constexpr (kTwo) {
          const float4 q = *reinterpret_cast<const float4*>(rows_b + from);
          const float second[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[c + i] = fmaf(weight_b, second[i], sums[c + i]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kChannels; c += 2)
      *reinterpret_cast<typename Convert<T>::Pair*>(row + first + c) =
          Convert<T>::pack2(sums[c], sums[c + 1]);
  }
}

// A tile of gradients to its place in a contiguous (B, N, h, e).
template <class G>
__device__ __forceinline__ void store_tokens(const SingleQueryAttentionParams& p, void* grad,
                                             const Work& work, int64_t first, int count, int e,
                                             bool vector, const typename G::T* tile) {
  const auto rows = packed_rows<typename G::T>(grad, p.N, p.h, e, work);
  store_rows<G::C, G::E, G::LD>(
      tile, vector, count, e, [](int row) { return row; },
      [&](int row) { return rows(first + row); });
}

template <class G>
constexpr int kBackwardBlocks = G::E <= 32 ? 3 : 2;  // as kForwardBlocks

template <class G>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks<G>)
    backward_kernel(const SingleQueryAttentionParams p, const Vectors vectors, const Runs runs,
                    const uint8_t* mask) {
  using T = typename G::T;
  using W = WarpTile<G>;
  HYBRID_DYN_SMEM(raw);
  const int groups = W::groups(p.G), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  T *query = reinterpret_cast<T*>(raw), *grad_out = query + groups * W::kQueryTile;
  T* tiles = grad_out + groups * W::kQueryTile;
  T* key = tiles + warp * W::token_tiles(p);
  T* value = p.values_are_keys ? key : key + W::kTokenTile;
  float* scratch = reinterpret_cast<float*>(tiles + kWarps * W::token_tiles(p));
  const WarpFloats<G> floats(scratch + G::kScratch + warp * WarpFloats<G>::number(p.G), p.G);
  const float scale = static_cast<float>(p.scale);
  const Work work(p, runs);
  if (work.image >= p.B) return;
  load_queries<G>(query, vectors.query, p.query, work, p.G, p.d);
  load_queries<G>(grad_out, vectors.grad_out, p.grad_out, work, p.G, p.dv);
  arrive();
  fill_floats<G>(floats, p, work, query, grad_out);
  __syncwarp();

  typename G::Out grad_query[W::kGroups];
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
      const int rows = W::rows(p.G, i), tile = i * W::kQueryTile;
      typename G::Scores x, y;
      G::score(x, query + tile, key, rows, p.d);
      G::score(y, grad_out + tile, value, rows, p.dv);
      probabilities<G>(x, y, floats, scale * kLog2e, keys, i * W::kOwn, p.G);
      if (p.grad_query) G::multiply(grad_query[i], y, scratch, key, rows, count, p.d);
    }
    __syncwarp();  // weights are readable, the tiles have been read
    if (lane < count && p.values_are_keys && p.grad_k)
      combine<G, true>(key + lane * G::LD, lane, p.G, p.d, floats.weights, floats.grad_out,
                       floats.grads, floats.query);
    if (lane < count && !p.values_are_keys && p.grad_k)
      combine<G, false>(key + lane * G::LD, lane, p.G, p.d, floats.grads, floats.query, nullptr,
                        nullptr);
    if (lane < count && p.grad_v)
      combine<G, false>(value + lane * G::LD, lane, p.G, p.dv, floats.weights, floats.grad_out,
                        nullptr, nullptr);
    __syncwarp();  // the gradients are readable
    if (p.grad_k) store_tokens<G>(p, p.grad_k, work, first, count, p.d, vectors.grad_k, key);
    if (p.grad_v) store_tokens<G>(p, p.grad_v, work, first, count, p.dv, vectors.grad_v, value);
    __syncwarp();  // the tiles are free
  }

  if (!p.grad_query) return;
  float* partial = static_cast<float*>(p.workspace) + work.index * p.G * partial_floats(p, true);
#pragma unroll
  for (int i = 0; i < W::kGroups; ++i) {
    if (i >= groups) break;
#pragma unroll
    for (int r = 0; r < G::kRows; ++r) {
      const int g = i * W::kOwn + G::own(r);
      if (g >= p.G) continue;
#pragma unroll
      for (int n = 0; n < G::kOutCols; ++n)
        if (G::out_col(n) < p.d) partial[g * p.d + G::out_col(n)] = grad_query[i].at(r, n) * scale;
    }
  }
}

// A block adds up one head and query of an image, or of all images where they share the queries.
// Thread (part, channel) takes every parts-th run.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    add_kernel(const SingleQueryAttentionParams p, int64_t runs) {
  HYBRID_SHARED(float, sums, [kMergeThreads]);
  const int64_t row = blockIdx.x, image = row / p.h / p.G;
  const int head = static_cast<int>(row / p.G % p.h), g = static_cast<int>(row % p.G);
  const int parts = kMergeThreads / p.d, part = threadIdx.x / p.d, c = threadIdx.x % p.d;
  const int64_t step = int64_t{p.h} * p.G * p.d, number = p.shared ? p.B * runs : runs;
  const float* partial = static_cast<const float*>(p.workspace) + image * runs * step +
                         (int64_t{head} * p.G + g) * p.d + c;
  float sum = 0.0f;
  for (int64_t run = part; part < parts && run < number; run += parts) sum += partial[run * step];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (part > 0) return;
  for (int i = 1; i < parts; ++i) sum += sums[i * p.d + c];
  T* grad = static_cast<T*>(p.grad_query) + ((image * p.G + g) * p.h + head) * p.d;
  grad[c] = Convert<T>::from_float(sum);
}

}  // namespace

template <class T>
int single_query_backward(const SingleQueryAttentionParams& p, const uint8_t* mask, void* stream) {
  return by_width<T>(p, [&](auto tile) {
    using G = typename decltype(tile)::G;
    const Runs runs(p);
    const int bytes = backward_shared_bytes<G>(p);
    const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(works(p, runs), kWarps)));
    if (int error = HYBRID_SMEM_OPT_IN((backward_kernel<G>), bytes)) return error;
    int error = HYBRID_LAUNCH((backward_kernel<G>), grid, dim3(kThreads), bytes, stream, p,
                              Vectors(p), runs, mask);
    if (error || !p.grad_query) return error;
    const int64_t rows = (p.shared ? 1 : p.B) * p.h * p.G;
    return HYBRID_LAUNCH((add_kernel<T>), dim3(static_cast<unsigned>(rows)), dim3(kMergeThreads), 0,
                         stream, p, runs.number);
  });
}

}  // namespace hybrid
