// A panel of queries against all keys of an image, all heads at once: what forward and backward
// share.
//
// Matrices of a panel are [head][key][query] with the queries in the lanes. Mixing heads is then a
// product of w1 or w2 with whole rows of keys and queries, and the softmax needs no operation
// across lanes. The weights of all keys of a panel stay in the caches: computing them twice would
// cost more than reading them again. Scores are plain <q, k>; scale and log2 e are in w1.
#pragma once

#include "../common/aligned_buffer.h"
#include "../common/attention/cpu_blocks.h"
#include "../common/partial_sums.h"
#include "mixed_head_attention.h"

namespace hybrid {
namespace HYBRID_ISA {

// For data of T. Each type is compiled in a file of its own, to be rebuilt in seconds.
template <class T>
void mixed_head_attention_forward(const MixedHeadAttentionParams& p, int64_t begin, int64_t end);
template <class T>
void mixed_head_attention_backward(const MixedHeadAttentionParams& p, int64_t begin, int64_t end);

namespace {

using Params = MixedHeadAttentionParams;

constexpr int64_t kPanelBytes = int64_t{512} << 10;  // of the rows that a panel keeps
constexpr int64_t kTileBytes = int64_t{64} << 10;    // of a tile of keys of all heads

// How queries and keys of T are cut, with `kept` rows of weights per key and query.
template <class T>
struct PanelCut {
  int64_t queries;  // of a panel, whole vectors
  int64_t pitch;    // from one head's weights of a panel to the next
  int64_t tile;     // keys
  int64_t tile_pitch;

  PanelCut(const Params& p, int64_t kept) {
    constexpr int64_t kCount = Arithmetic<T>::kCount;
    const int64_t bytes = kCount * static_cast<int64_t>(sizeof(typename Arithmetic<T>::Scalar));
    const int64_t vectors = ceil_div(ceil_div(p.M, query_pieces(p)), kCount);
    const int64_t fit = kPanelBytes / (kept * p.M * bytes);
    const int64_t most = fit < 1 ? 1 : fit > 4 ? 4 : fit;
    queries = ceil_div(vectors, ceil_div(vectors, most)) * kCount;
    const int64_t keys = kTileBytes / (p.h * queries / kCount * bytes);
    tile = keys < 8 ? 8 : keys;
    if (tile > p.M) tile = p.M;
    pitch = spread(p.M * queries);
    tile_pitch = spread(tile * queries);
  }

 private:
  // Rows a multiple of 4 KiB apart would fall into the same few lines of the first-level cache.
  static int64_t spread(int64_t elements) {
    return elements % 1024 < 64 ? elements + 64 : elements;
  }
};

template <class T>
class MixedPanels {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;

 protected:
  static constexpr int kCount = Arithmetic<T>::kCount;
  static constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

  MixedPanels(const Params& p, int64_t kept)
      : p_(p),
        cut_(p, kept),
        words_(whole_vectors<T>(p.d)),
        word_vectors_(static_cast<int>(words_ / kCount)),
        w1_(size(p.g * p.h)),
        w2_(size(p.h * p.g)),
        b1_(size(p.g)),
        b2_(size(p.h)),
        k_(size(p.h * p.M * words_)),
        v_(size(p.h * p.M * words_)),
        q_(size(p.h * cut_.queries * words_)),
        qt_(size(p.h * words_ * cut_.queries)),
        tile_(size(p.h * cut_.tile_pitch)) {
    convert(p.w1, p.g * p.h, w1_, p.scale * kLog2E);
    convert(p.w2, p.h * p.g, w2_, 1);
    convert(p.b1, p.g, b1_, 1);
    convert(p.b2, p.h, b2_, 1);
  }

  static size_t size(int64_t count) { return static_cast<size_t>(count); }

  static void convert(const void* from, int64_t count, Scalar* to, double factor) {
    const T* values = static_cast<const T*>(from);
    for_each_vector<T>(count, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      const V x = load_lanes(values + i, lanes) * broadcast(static_cast<Scalar>(factor));
      store_lanes(to + i, x, lanes);
    });
  }

  // body(first query, queries) for the panels of a chunk, keys and values of its image at hand.
  template <class Body>
  void for_panels(int64_t chunk, const Body& body) {
    const int64_t pieces = query_pieces(p_), image = chunk / pieces, piece = chunk % pieces;
    if (image != image_) {
      gather_heads(p_.k, image, 0, p_.M, p_.M, k_);
      gather_heads(p_.v, image, 0, p_.M, p_.M, v_);
    }
    image_ = image;
    const int64_t end = p_.M * (piece + 1) / pieces;
    for (int64_t first = p_.M * piece / pieces; first < end; first += cut_.queries) {
      const int64_t count = end - first < cut_.queries ? end - first : cut_.queries;
      gather_heads(p_.q, image_, first, count, cut_.queries, q_);
      transpose_heads(q_, qt_);
      body(first, count);
    }
  }

  // to[head][token][channel], rows in whole vectors and zeros behind the last of `rows` tokens.
  void gather_heads(const AttentionTokens& tokens, int64_t image, int64_t first, int64_t count,
                    int64_t rows, Scalar* to) const {
    const T* from =
        static_cast<const T*>(tokens.data) + image * tokens.stride[0] + first * tokens.stride[1];
    for (int64_t head = 0; head < p_.h; ++head, to += rows * words_) {
      for (int64_t t = 0; t < count; ++t) {
        const T* row = from + t * tokens.stride[1] + head * tokens.stride[2];
        for_each_vector<T>(p_.d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          store(to + t * words_ + c, load_lanes(row + c, lanes));
        });
      }
      zero(to + count * words_, (rows - count) * words_);
    }
  }

  // Rows of a panel to to[head][channel][query].
  void transpose_heads(const Scalar* rows, Scalar* to) const {
    const int64_t step = words_ * cut_.queries;
    for (int64_t head = 0; head < p_.h; ++head)
      transpose_rows<Scalar>(rows + head * step, words_, cut_.queries, p_.d, to + head * step,
                             cut_.queries);
  }

  // body(first key, keys).
  template <class Body>
  void for_tiles(const Body& body) const {
    for (int64_t key = 0; key < p_.M; key += cut_.tile)
      body(key, p_.M - key < cut_.tile ? p_.M - key : cut_.tile);
  }

  // to[head][key][query] = <rows of the keys, columns of the queries>, heads `pitch` apart.
  void token_products(const Scalar* rows, const Scalar* columns, int64_t first, int64_t keys,
                      Scalar* to, int64_t pitch) const {
    const int64_t queries = cut_.queries;
    for (int64_t head = 0; head < p_.h; ++head)
      products<Scalar>(rows + (head * p_.M + first) * words_, words_, 1, keys,
                       columns + head * words_ * queries, queries,
                       static_cast<int>(queries / kCount), p_.d,
                       [&](int64_t key, int vector, V x) __attribute__((always_inline)) {
                         store(to + head * pitch + key * queries + vector * kCount, x);
                       });
  }

  // to = layer from (+ bias) across heads, for `keys` keys; layer (rows, inner).
  void mix(const Scalar* layer, int64_t rows, int64_t inner, const Scalar* from, int64_t from_pitch,
           Scalar* to, int64_t to_pitch, int64_t keys, const Scalar* bias = nullptr) const {
    products<Scalar>(layer, inner, 1, rows, from, from_pitch, vectors(keys), inner,
                     [=](int64_t row, int vector, V x) __attribute__((always_inline)) {
                       store(to + row * to_pitch + vector * kCount,
                             bias ? x + broadcast(bias[row]) : x);
                     });
  }

  int vectors(int64_t keys) const { return static_cast<int>(keys * cut_.queries / kCount); }

  // rows[query][channel] += the tile's matrix of a head times `tokens`, rows of its keys.
  void add_to_queries(int64_t head, int64_t keys, const Scalar* tokens, int64_t count,
                      Scalar* rows) const {
    products<Scalar>(tile_ + head * cut_.tile_pitch, 1, cut_.queries, count, tokens, words_,
                     word_vectors_, keys,
                     [&](int64_t i, int vector, V x) __attribute__((always_inline)) {
                       Scalar* to = rows + i * words_ + vector * kCount;
                       store(to, load(to) + x);
                     });
  }

  // rows[key][channel] += the same matrix, transposed, times rows of its queries.
  void add_to_keys(int64_t head, int64_t keys, const Scalar* queries, int64_t count,
                   Scalar* rows) const {
    products<Scalar>(tile_ + head * cut_.tile_pitch, cut_.queries, 1, keys, queries, words_,
                     word_vectors_, count,
                     [&](int64_t key, int vector, V x) __attribute__((always_inline)) {
                       Scalar* to = rows + key * words_ + vector * kCount;
                       store(to, load(to) + x);
                     });
  }

  // rows[head][query][channel], times a factor, to (B, M, h, d).
  void store_heads(const Scalar* rows, int64_t first, int64_t count, double factor,
                   void* data) const {
    const V scale = broadcast(static_cast<Scalar>(factor));
    T* to = static_cast<T*>(data) + (image_ * p_.M + first) * p_.h * p_.d;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t head = 0; head < p_.h; ++head, to += p_.d) {
        const Scalar* row = rows + (head * cut_.queries + i) * words_;
        for_each_vector<T>(p_.d, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          store_lanes(to + c, load(row + c) * scale, lanes);
        });
      }
  }

  // Of the log-sum-exp of a mixed head, the place of a query.
  Scalar* lse(int64_t mixed, int64_t query) const {
    return static_cast<Scalar*>(p_.lse) + (image_ * p_.g + mixed) * p_.M + query;
  }

  const Params& p_;
  const PanelCut<T> cut_;
  const int64_t words_;  // of a row of d channels
  const int word_vectors_;
  AlignedBuffer<Scalar> w1_, w2_, b1_, b2_;
  AlignedBuffer<Scalar> k_, v_;  // [head][key][channel]
  AlignedBuffer<Scalar> q_;      // [head][query][channel] of a panel
  AlignedBuffer<Scalar> qt_;     // [head][channel][query]
  AlignedBuffer<Scalar> tile_;   // [head][key][query] of a tile
  int64_t image_ = -1;
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
