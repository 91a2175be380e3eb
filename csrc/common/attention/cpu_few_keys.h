// Attention of panels of queries to a few keys, all heads of one image: queries, outputs and their
// gradients are rows of C channels in float (double), wherever the caller has them from.
//
// Scores are kept transposed, S[key][query] with the queries in the lanes: the softmax over keys
// then needs no operation across lanes. The same array is the broadcast side of P V and dS K (down
// its columns), of P^T dO and dS^T Q (along its rows), where channels are in the lanes.
#pragma once

#include "../aligned_buffer.h"
#include "../partial_sums.h"
#include "cpu_blocks.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

// Keys and values (M, 2, h, d) of an image, last stride 1.
template <class T>
struct KeysAndValues {
  const T* data;
  int64_t token, kind, head;  // strides in elements
};

template <class T>
class FewKeys {
 public:
  using Scalar = typename Arithmetic<T>::Scalar;
  static constexpr int kPanel = 64;  // queries at a time
  // Elements that must be readable behind the last row of queries or gradients.
  static constexpr int kSlack = Arithmetic<T>::kCount;

  FewKeys(int64_t keys, int64_t heads, int64_t d, double scale)
      : M_(keys),
        h_(heads),
        d_(d),
        words_(whole_vectors<T>(d)),
        scale_(static_cast<Scalar>(scale)),
        scale_log2_(static_cast<Scalar>(scale * 1.4426950408889634)),
        k_(static_cast<size_t>(h_ * M_ * words_)),
        v_(static_cast<size_t>(h_ * M_ * words_)),
        qt_(static_cast<size_t>(words_ * kPanel)),
        gt_(static_cast<size_t>(words_ * kPanel)),
        p_(static_cast<size_t>(M_ * kPanel)),
        ds_(static_cast<size_t>(M_ * kPanel)) {}

  // Keys and values of an image, for the panels that follow.
  void begin(const KeysAndValues<T>& kv) {
    for (int64_t head = 0; head < h_; ++head)
      for (int64_t m = 0; m < M_; ++m) {
        const T* key = kv.data + m * kv.token + head * kv.head;
        copy_row(key, k_ + (head * M_ + m) * words_);
        copy_row(key + kv.kind, v_ + (head * M_ + m) * words_);
      }
  }

  // Adds the attention of up to kPanel queries to their rows of out.
  void add_attention(const Scalar* q, Scalar* out, int64_t step, int64_t count) {
    for (int64_t head = 0; head < h_; ++head) {
      weigh(head, q, step, count);
      products<T>(&p_[0], 1, kPanel, count, v_ + head * M_ * words_, words_, vectors(d_), M_,
                  [&](int64_t i, int vector, V x) __attribute__((always_inline)) {
                    add_vector(out + i * step + head * d_, vector, x);
                  });
    }
  }

  // Elements of the sums that the gradients of keys and values are: (h, 2, M, words).
  static int64_t sums(int64_t keys, int64_t heads, int64_t d) {
    return heads * 2 * keys * whole_vectors<T>(d);
  }

  // Such sums, added up over parts that lie `stride` apart, to a gradient (M, 2, h, d).
  static void reduce(int64_t keys, int64_t heads, int64_t d, const Scalar* sums, int64_t parts,
                     int64_t stride, T* grad) {
    for (int64_t m = 0; m < keys; ++m)
      for (int64_t kind = 0; kind < 2; ++kind)
        for (int64_t head = 0; head < heads; ++head, grad += d)
          sum_parts(sums + ((head * 2 + kind) * keys + m) * whole_vectors<T>(d), parts, stride, d,
                    grad);
  }

  // From the gradients of the outputs of a panel: those of its queries, unless null, and, unless
  // null, what it adds to the sums.
  void backward(const Scalar* q, const Scalar* grad, Scalar* grad_q, Scalar* sums, int64_t step,
                int64_t count) {
    for (int64_t head = 0; head < h_; ++head) {
      const int64_t first = head * d_;
      weigh(head, q, step, count);
      weigh_gradient(head, grad, step, count);
      if (grad_q)
        products<T>(&ds_[0], 1, kPanel, count, k_ + head * M_ * words_, words_, vectors(d_), M_,
                    [&](int64_t i, int vector, V x) __attribute__((always_inline)) {
                      store_vector(grad_q + i * step + first, vector, x);
                    });
      if (!sums) continue;
      add_products(ds_, q + first, step, count, sums + head * 2 * M_ * words_);
      add_products(p_, grad + first, step, count, sums + (head * 2 + 1) * M_ * words_);
    }
  }

 private:
  using V = typename Arithmetic<T>::Vector;
  static constexpr int kCount = Arithmetic<T>::kCount;

  static int vectors(int64_t count) { return static_cast<int>((count + kCount - 1) / kCount); }

  void copy_row(const T* from, Scalar* to) const {
    for_each_vector<T>(d_, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
      store(to + c, load_lanes(from + c, lanes));
    });
  }

  void store_vector(Scalar* row, int vector, V x) const {
    const int64_t c = vector * kCount;
    d_ - c >= kCount ? store(row + c, x) : store_first(row + c, x, static_cast<int>(d_ - c));
  }
  void add_vector(Scalar* row, int vector, V x) const {
    store_vector(row, vector, x + load(row + vector * kCount));
  }

  // The weights of a head, P[key][query].
  void weigh(int64_t head, const Scalar* q, int64_t step, int64_t count) {
    transpose_rows<T>(q + head * d_, step, count, d_, &qt_[0], kPanel);
    products<T>(k_ + head * M_ * words_, words_, 1, M_, &qt_[0], kPanel, vectors(count), d_,
                [&](int64_t m, int vector, V x) __attribute__((always_inline)) {
                  store(p_ + m * kPanel + vector * kCount, x * broadcast(scale_log2_));
                });
    softmax_over_keys<T>(&p_[0], M_, kPanel, count, [](int64_t, V, V) {});
  }

  // scale dS[key][query] = scale P (dP - sum of P dP over keys), with dP = V dO^T.
  void weigh_gradient(int64_t head, const Scalar* grad, int64_t step, int64_t count) {
    transpose_rows<T>(grad + head * d_, step, count, d_, &gt_[0], kPanel);
    products<T>(v_ + head * M_ * words_, words_, 1, M_, &gt_[0], kPanel, vectors(count), d_,
                [&](int64_t m, int vector, V x) __attribute__((always_inline)) {
                  store(ds_ + m * kPanel + vector * kCount, x);
                });
    for (int64_t i = 0; i < count; i += kCount) {
      V delta = broadcast(Scalar(0));
      for (int64_t m = 0; m < M_; ++m)
        delta = fma(load(p_ + m * kPanel + i), load(ds_ + m * kPanel + i), delta);
      for (int64_t m = 0; m < M_; ++m) {
        Scalar* ds = ds_ + m * kPanel + i;
        store(ds, load(p_ + m * kPanel + i) * (load(ds) - delta) * broadcast(scale_));
      }
    }
  }

  // sums[key] += the rows, weighed by weights[key][query].
  void add_products(const Scalar* weights, const Scalar* rows, int64_t step, int64_t count,
                    Scalar* sums) const {
    products<T>(weights, kPanel, 1, M_, rows, step, vectors(d_), count,
                [&](int64_t m, int vector, V x) __attribute__((always_inline)) {
                  Scalar* to = sums + m * words_ + vector * kCount;
                  store(to, load(to) + x);
                });
  }

  const int64_t M_, h_, d_, words_;
  const Scalar scale_, scale_log2_;
  AlignedBuffer<Scalar> k_, v_;    // [head][key][channel]
  AlignedBuffer<Scalar> qt_, gt_;  // of a panel and head: [channel][query]
  AlignedBuffer<Scalar> p_, ds_;   // likewise: [key][query]
};

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid
