// What the forward and the backward share: a warp and its run of tokens. Every warp has its own
// copy of the queries in the rows of the tile arithmetic that it owns (G::warp_row), its own tiles
// of tokens, and waits for no other warp. Where it owns fewer rows than there are queries, these
// come in several groups.
#pragma once

#include "cuda_launch.cuh"

namespace hybrid {
namespace {

constexpr int kMergeThreads = 512;

template <class G>
struct WarpTile {
  static constexpr int kOwn = G::R / kWarps;          // queries of a group
  static constexpr int kGroups = kMaxQueries / kOwn;  // at most
  static constexpr int kTokens = G::C;                // of a tile
  static constexpr int kQueryTile = G::R * G::LD;     // elements, of one group and all warps
  static constexpr int kTokenTile = kTokens * G::LD;  // elements, of one warp
  static constexpr int kElement = static_cast<int>(sizeof(typename G::T));

  static __host__ __device__ int groups(int queries) { return divide_up(queries, kOwn); }

  // Elements of a warp's keys and values.
  static __host__ __device__ int token_tiles(const SingleQueryAttentionParams& p) {
    return kTokenTile * (p.values_are_keys ? 1 : 2);
  }

  // Rows of a group for products.
  static __device__ __forceinline__ int rows(int queries, int group) {
    return G::rows_of_all_warps(min(kOwn, queries - group * kOwn));
  }
};

// Which tensors' rows can move by 16 bytes.
struct Vectors {
  bool query, k, v, grad_out, grad_k, grad_v;

  explicit Vectors(const SingleQueryAttentionParams& p) {
    query = is_vector(p.dtype, p.query, p.d);
    k = is_vector(p.dtype, p.k, p.d);
    v = is_vector(p.dtype, p.v, p.dv);
    grad_out = is_vector(p.dtype, p.grad_out, p.dv);
    grad_k = is_vector(p.dtype, p.grad_k, nullptr, p.d);
    grad_v = is_vector(p.dtype, p.grad_v, nullptr, p.dv);
  }
};

// The image, head and tokens of a warp; neighbouring warps are heads of the same tokens, whose rows
// lie side by side in memory. Beyond the last image there is nothing to do.
struct Work {
  int64_t index;  // of the run: where its partial results are
  int64_t image;
  int head;
  int64_t first, end;  // tokens

  __device__ __forceinline__ Work(const SingleQueryAttentionParams& p, const Runs& runs) {
    index = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
    const int64_t rest = index / p.h;
    head = static_cast<int>(index - rest * p.h);
    image = rest / runs.number;
    first = (rest - image * runs.number) * runs.tokens;
    end = min(first + runs.tokens, p.N);
  }
};

// Queries (or gradients of the output) into the rows that this warp owns, one tile per group.
template <class G>
__device__ __forceinline__ void load_queries(typename G::T* tiles, bool vector,
                                             const AttentionTokens& tokens, const Work& work,
                                             int queries, int e) {
  using W = WarpTile<G>;
  const auto rows = token_rows<typename G::T>(tokens, work);
  for (int first = 0; first < queries; first += W::kOwn, tiles += W::kQueryTile)
    copy_rows_to<W::kOwn, G::E, G::LD, 1, 32>(
        tiles, vector, queries - first, e, rows.base, 0, [](int row) { return G::warp_row(row); },
        [&](int row) { return rows(first + row); });
}

// A tile of keys or values.
template <class G>
__device__ __forceinline__ void load_tokens(typename G::T* tile, bool vector,
                                            const AttentionTokens& tokens, const Work& work,
                                            int64_t first, int count, int e) {
  const auto rows = token_rows<typename G::T>(tokens, work);
  copy_rows<WarpTile<G>::kTokens, G::E, G::LD, 1, 32>(tile, vector, count, e, rows.base, 0,
                                                      [&](int row) { return rows(first + row); });
}

// Waits for this warp's copies.
__device__ __forceinline__ void arrive() {
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
}

// One bit for each token of a tile that is a key.
__device__ __forceinline__ uint32_t keys_of(const SingleQueryAttentionParams& p,
                                            const uint8_t* mask, const Work& work, int64_t first,
                                            int count) {
  const int token = threadIdx.x % 32;
  bool is_key = token < count;
  if (is_key && mask) is_key = mask[work.image * p.N + first + token] == 0;
  return __ballot_sync(0xffffffffu, is_key);
}

// Products of queries and keys -> scores in base 2; -inf where a token is no key.
template <class G>
__device__ __forceinline__ void to_logits(typename G::Scores& x, float scale, uint32_t keys) {
#pragma unroll
  for (int n = 0; n < G::kCols; ++n)
#pragma unroll
    for (int r = 0; r < G::kRows; ++r)
      x.at(r, n) = keys >> G::col(n) & 1 ? x.at(r, n) * scale : -INFINITY;
}

// What some runs of a query have in common, for one channel: all relative to the largest score.
struct MergedRuns {
  float top = -INFINITY, total = 0.0f, sum = 0.0f;

  __device__ __forceinline__ void add(float other_top, float other_total, float other_sum) {
    const float base = finite_base(fmaxf(top, other_top));
    const float mine = exp2_approx(top - base), other = exp2_approx(other_top - base);
    top = fmaxf(top, other_top);
    total = total * mine + other_total * other;
    sum = sum * mine + other_sum * other;
  }
};

}  // namespace
}  // namespace hybrid
