// context_topk on the CPU: means in vectors, then a select bit by bit. Compiled once per
// instruction set.
#include "../common/arithmetic.h"
#include "context_topk.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = ContextTopkParams;

constexpr int64_t kBytesAhead = 8192;  // that tokens are fetched before their turn

template <class Scalar>
struct KeyOf {
  using Type = uint32_t;
};
template <>
struct KeyOf<double> {
  using Type = uint64_t;
};

// Keys of means, one per lane: they order as means do. NaN has the largest, both zeros the same.
inline void store_keys(F means, uint32_t* keys, int64_t count) {
  means = means + zero();
  const I bits = as_int(means), is_nan = means != means;
  const I ordered = (bits ^ (bits >> 31 | static_cast<int32_t>(0x80000000u))) | is_nan;
  __builtin_memcpy(keys, &ordered, static_cast<uint64_t>(count) * sizeof *keys);
}
inline void store_keys(double mean, uint64_t* key, int64_t) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  mean = mean + 0.;
  uint64_t bits;
  __builtin_memcpy(&bits, &mean, sizeof bits);
  *key = mean != mean ? ~uint64_t{0} : bits & kSign ? ~bits : bits | kSign;
}

// Sums over the channels of as many rows as a vector has lanes. Rows that hold the same have the
// same sum, wherever they lie: ties are decided by the index alone. Rows are fetched `ahead`
// elements before their turn.
template <class T>
typename Arithmetic<T>::Vector sum_rows(const T* const (&rows)[Arithmetic<T>::kCount], int64_t C,
                                        int64_t ahead) {
  constexpr int kCount = Arithmetic<T>::kCount;
  typename Arithmetic<T>::Vector acc[kCount] = {};
  constexpr int kBeside = kCount < 4 ? kCount : 4;  // rows beside each other; more are read slower
  for (int first = 0; first < kCount; first += kBeside)
    for_each_vector<T>(C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int i = first; i < first + kBeside; ++i) {
        __builtin_prefetch(rows[i] + c + ahead, 0, 3);
        acc[i] = acc[i] + load_lanes(rows[i] + c, lanes);
      }
    });
  if constexpr (kCount > 1)
    return sums(acc);
  else
    return acc[0];
}

template <class T>
void make_chunk_keys(const Params& p, int64_t chunk) {
  using Scalar = typename Arithmetic<T>::Scalar;
  constexpr int kCount = Arithmetic<T>::kCount;
  const int64_t image = chunk / topk_pieces(p), first = chunk % topk_pieces(p) * kTopkTokens;
  const int64_t end = first + kTopkTokens < p.N ? first + kTopkTokens : p.N;
  const T* u = static_cast<const T*>(p.u) + image * p.stride[0];
  auto* keys = static_cast<typename KeyOf<Scalar>::Type*>(p.keys) + image * p.N;
  const int64_t row = p.stride[1] > 0 ? p.stride[1] : 1;
  const int64_t ahead = ceil_div<int64_t>(kBytesAhead / sizeof(T), row) * row;
  for (int64_t token = first; token < end; token += kCount) {
    const T* rows[kCount];  // lanes behind the last token repeat it
    for (int i = 0; i < kCount; ++i)
      rows[i] = u + (token + i < end ? token + i : end - 1) * p.stride[1];
    const auto means = sum_rows<T>(rows, p.C, ahead) / broadcast(static_cast<Scalar>(p.C));
    store_keys(means, keys + token, end - token < kCount ? end - token : kCount);
  }
}

void make_keys(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto type) {
    for (int64_t chunk = begin; chunk < end; ++chunk) make_chunk_keys<decltype(type)>(p, chunk);
  });
}

// How many keys are no less: a loop for the compiler to put into vectors.
template <class Key>
int64_t count_from(const Key* keys, int64_t count, Key least) {
  Key number = 0;
  for (int64_t i = 0; i < count; ++i) number += keys[i] >= least;
  return static_cast<int64_t>(number);
}

// The n-th largest key, bit by bit; n becomes how many of the tokens with that very key are chosen.
// Stops at what all n chosen keys have in common and no other has.
template <class Key>
Key nth_largest(const Key* keys, int64_t count, int64_t& n) {
  Key found = 0;
  for (Key bit = Key{1} << (8 * sizeof(Key) - 1); bit; bit >>= 1) {
    const int64_t number = count_from<Key>(keys, count, found | bit);
    if (number >= n) found |= bit;
    if (number == n) return found;
  }
  if (found != ~Key{0}) n -= count_from<Key>(keys, count, found + 1);
  return found;
}

template <class Key>
void select_tokens(const Params& p, int64_t image) {
  const Key* keys = static_cast<const Key*>(p.keys) + image * p.N;
  int32_t* index = p.index + image * p.n;
  const int32_t* end = index + p.n;
  int64_t ties = p.n;
  const Key least = nth_largest(keys, p.N, ties);
  for (int32_t token = 0; index < end; ++token) {  // without branches, which could not be foreseen
    const bool is_tie = keys[token] == least;
    *index = token;
    index += (keys[token] > least) | (is_tie & (ties > 0));
    ties -= is_tie;
  }
}

void select(const Params& p, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image)
    p.dtype == DType::f64 ? select_tokens<uint64_t>(p, image) : select_tokens<uint32_t>(p, image);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const ContextTopkCpu& cpu_table<ContextTopkCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr ContextTopkCpu table{make_keys, select};
  return table;
}

}  // namespace hybrid
