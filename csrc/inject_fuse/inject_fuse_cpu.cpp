// CPU kernels of inject_fuse. Compiled once per instruction set.
//
// Between two rows of the coarse maps everything is linear: a row of the fine map first gets its
// row of the coarse maps, which then lies in a cache, and the gradients of a fine row are first
// summed along it.
#include "../common/activations.h"
#include "../common/aligned_buffer.h"
#include "../common/partial_sums.h"
#include "../common/stencil/rows.h"
#include "inject_fuse.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kJobs = 16;  // to aim at

// What an element of the fine map reads along one axis.
struct Read {
  int64_t low, high;
  double share;  // of the high one

  // Exact: positions are multiples of 1 / (2 fine).
  Read(int64_t i, int64_t size, int64_t fine) {
    const int64_t twice = (2 * i + 1) * size - fine, place = twice > 0 ? twice : 0;
    low = place / (2 * fine);
    high = low + 1 < size ? low + 1 : low;
    share = static_cast<double>(place % (2 * fine)) / static_cast<double>(2 * fine);
  }
};

// First element of the fine map whose low one is t or more: (2 i + 1) size >= (2 t + 1) fine.
inline int64_t first_reader(int64_t t, int64_t size, int64_t fine) {
  const int64_t least = (2 * t + 1) * fine - size;
  if (t <= 0 || least <= 0) return 0;
  const int64_t i = ceil_div(least, 2 * size);
  return i < fine ? i : fine;
}

// An axis of `size` rows in equal bands, for every image.
struct Bands {
  int64_t rows, count;

  Bands(int64_t B, int64_t size) {
    rows = ceil_div(size, ceil_div(kJobs, B));
    count = ceil_div(size, rows);
  }
};

template <class T>
class Worker {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  using Row = AlignedBuffer<Scalar>;

 public:
  explicit Worker(const InjectFuseParams& p)
      : p_(p),
        width_(whole_vectors<T>(p.C)),
        gate_(static_cast<size_t>(p.W * width_)),
        offset_(static_cast<size_t>(p.W * width_)),
        columns_(static_cast<size_t>(p.fine_W)) {
    for (int64_t j = 0; j < p.fine_W; ++j) {
      const Read read(j, p.W, p.fine_W);
      columns_[j] = {read.low * width_, read.high * width_, static_cast<Scalar>(read.share)};
    }
  }

  void forward(int64_t begin, int64_t end) {
    const Bands bands(p_.B, p_.fine_H);
    const bool streams = streams_map<T>(p_.y, p_.B, p_.fine_H);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / bands.count, first = index % bands.count * bands.rows;
      const int64_t last = first + bands.rows < p_.fine_H ? first + bands.rows : p_.fine_H;
      for (int64_t i = first; i < last; ++i) {
        mix_rows(image, i, true);
        fuse_row(image, i, streams);
      }
    }
    stream_fence();
  }

  // A job sums for its rows of the coarse maps alone, and so reads some fine rows that the next job
  // reads too; those whose lower row is its own get their dlocal from it.
  void backward(int64_t begin, int64_t end) {
    const Bands bands(p_.B, p_.H);
    Sums sums(p_.W * width_);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / bands.count, first = index % bands.count * bands.rows;
      const int64_t last = first + bands.rows < p_.H ? first + bands.rows : p_.H;
      backward_band(sums, image, first, last);
    }
  }

 private:
  struct Column {
    int64_t low, high;  // in a row of the coarse maps
    Scalar share;
  };

  // Sums over fine pixels for one fine row, and for the two coarse rows that it reads.
  struct Sums {
    Row gate_along, offset_along, gate[2], offset[2];

    explicit Sums(int64_t count)
        : gate_along(count),
          offset_along(count),
          gate{Row(count), Row(count)},
          offset{Row(count), Row(count)} {}
  };

  bool needs_sums() const { return p_.grad_logit.data || p_.grad_offset.data; }

  // Rows of hsig(logit), and of offset, as fine row i sees them.
  void mix_rows(int64_t image, int64_t i, bool with_offset) {
    const Read read(i, p_.H, p_.fine_H);
    const V share = broadcast(static_cast<Scalar>(read.share));
    const auto mix = [&](const InputMap& map, Scalar* to, auto apply) {
      const T* low = map.template row<T>(image, read.low, 0);
      const T* high = map.template row<T>(image, read.high, 0);
      for (int64_t q = 0; q < p_.W; ++q, to += width_)
        for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
          const V a = apply(load_lanes(low + q * map.stride[2] + c, lanes));
          const V b = apply(load_lanes(high + q * map.stride[2] + c, lanes));
          store(to + c, fma(share, b - a, a));
        });
    };
    mix(p_.logit, gate_, [](V t) { return clamp(t + constant<V>(3), 0, 6) * constant<V>(1. / 6); });
    if (with_offset) mix(p_.offset, offset_, [](V t) { return t; });
  }

  static V between(const Scalar* row, const Column& at, int64_t c) {
    const V low = load(row + at.low + c);
    return fma(broadcast(at.share), load(row + at.high + c) - low, low);
  }

  void fuse_row(int64_t image, int64_t i, bool streams) const {
    const T* local = p_.local.row<T>(image, i, 0);
    T* y = p_.y.row<T>(image, i, 0);
    for (int64_t j = 0; j < p_.fine_W; ++j, local += p_.local.stride[2], y += p_.C)
      for_each_vector<T>(
          p_.C, [&, at = columns_[j]](int64_t c, auto lanes) __attribute__((always_inline)) {
            const V fused =
                fma(load_lanes(local + c, lanes), between(gate_, at, c), between(offset_, at, c));
            stream_lanes(y + c, fused, lanes, streams);
          });
  }

  void backward_band(Sums& sums, int64_t image, int64_t first, int64_t last) {
    const int64_t begin = needs_sums() ? first_reader(first - 1, p_.H, p_.fine_H)
                                       : first_reader(first, p_.H, p_.fine_H);
    const int64_t end = first_reader(last, p_.H, p_.fine_H);
    int64_t open = first;  // the first row whose sums are not finished
    for (int k = 0; k < 2; ++k) clear(sums, k);
    for (int64_t i = begin; i < end; ++i) {
      const Read read(i, p_.H, p_.fine_H);
      const bool is_own = read.low >= first;
      if (p_.grad_local.data && is_own) {
        mix_rows(image, i, false);
        store_grad_local(image, i);
      }
      if (!needs_sums()) continue;
      for (; open < read.low; ++open) finish_row(sums, image, open);
      sum_along(sums, image, i);
      const Scalar share = static_cast<Scalar>(read.share);
      if (is_own) add_row(sums, read.low, Scalar(1) - share);
      if (read.high < last) add_row(sums, read.high, share);
    }
    for (; needs_sums() && open < last; ++open) finish_row(sums, image, open);
  }

  void store_grad_local(int64_t image, int64_t i) const {
    const T* grad = p_.grad.row<T>(image, i, 0);
    T* to = p_.grad_local.row<T>(image, i, 0);
    for (int64_t j = 0; j < p_.fine_W; ++j, grad += p_.grad.stride[2], to += p_.C)
      for_each_vector<T>(
          p_.C, [&, at = columns_[j]](int64_t c, auto lanes) __attribute__((always_inline)) {
            store_lanes(to + c, load_lanes(grad + c, lanes) * between(gate_, at, c), lanes);
          });
  }

  // What fine row i gives to each coarse column.
  void sum_along(Sums& sums, int64_t image, int64_t i) const {
    Scalar *gate = sums.gate_along, *offset = sums.offset_along;
    zero(gate, p_.W * width_);
    zero(offset, p_.W * width_);
    const T* grad = p_.grad.row<T>(image, i, 0);
    const T* local = p_.local.row<T>(image, i, 0);
    const bool needs_gate = p_.grad_logit.data, needs_offset = p_.grad_offset.data;
    for (int64_t j = 0; j < p_.fine_W; ++j, grad += p_.grad.stride[2], local += p_.local.stride[2])
      for_each_vector<T>(
          p_.C, [&, at = columns_[j]](int64_t c, auto lanes) __attribute__((always_inline)) {
            const V dy = load_lanes(grad + c, lanes);
            if (needs_offset) add_shares(offset, at, c, dy);
            if (needs_gate) add_shares(gate, at, c, dy * load_lanes(local + c, lanes));
          });
  }

  static void add_shares(Scalar* row, const Column& at, int64_t c, V value) {
    const V high = value * broadcast(at.share);
    store(row + at.low + c, load(row + at.low + c) + (value - high));
    store(row + at.high + c, load(row + at.high + c) + high);
  }

  void add_row(Sums& sums, int64_t row, Scalar share) const {
    const auto add = [&](const Row& along, Row& to) {
      for (int64_t c = 0; c < p_.W * width_; c += Arithmetic<T>::kCount)
        store(to + c, fma(broadcast(share), load(along + c), load(to + c)));
    };
    if (p_.grad_logit.data) add(sums.gate_along, sums.gate[row % 2]);
    if (p_.grad_offset.data) add(sums.offset_along, sums.offset[row % 2]);
  }

  // Writes the gradients of a coarse row, and makes its place free for the row after the next.
  void finish_row(Sums& sums, int64_t image, int64_t row) const {
    if (p_.grad_logit.data)
      write_row(p_.grad_logit, sums.gate[row % 2], image, row,
                [logit = p_.logit.row<T>(image, row, 0), step = p_.logit.stride[2]](
                    int64_t q, int64_t c, auto lanes, V sum) {
                  const V t = load_lanes(logit + q * step + c, lanes);
                  const V three = constant<V>(3), none = constant<V>(0);
                  const V sixth = sum * constant<V>(1. / 6);
                  return select_positive(t + three, select_positive(three - t, sixth, none), none);
                });
    if (p_.grad_offset.data)
      write_row(p_.grad_offset, sums.offset[row % 2], image, row,
                [](int64_t, int64_t, auto, V sum) { return sum; });
    clear(sums, row);
  }

  void clear(Sums& sums, int64_t row) const {
    zero<Scalar>(sums.gate[row % 2], p_.W * width_);
    zero<Scalar>(sums.offset[row % 2], p_.W * width_);
  }

  // value(column, channel, lanes, sum) of a coarse row into a gradient.
  template <class Value>
  void write_row(const OutputMap& map, const Scalar* sums, int64_t image, int64_t row,
                 const Value& value) const {
    T* to = map.row<T>(image, row, 0);
    for (int64_t q = 0; q < p_.W; ++q, to += p_.C, sums += width_)
      for_each_vector<T>(p_.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store_lanes(to + c, value(q, c, lanes, load(sums + c)), lanes);
      });
  }

  const InjectFuseParams& p_;
  const int64_t width_;
  Row gate_, offset_;  // a row of the coarse maps, as a fine row sees it
  AlignedBuffer<Column> columns_;
};

void forward(const InjectFuseParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { Worker<decltype(x)>(p).forward(begin, end); });
}

void backward(const InjectFuseParams& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { Worker<decltype(x)>(p).backward(begin, end); });
}

int64_t forward_jobs(const InjectFuseParams& p) { return p.B * Bands(p.B, p.fine_H).count; }
int64_t backward_jobs(const InjectFuseParams& p) { return p.B * Bands(p.B, p.H).count; }

}  // namespace
}  // namespace HYBRID_ISA

template <>
const InjectFuseCpu& cpu_table<InjectFuseCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr InjectFuseCpu table{forward_jobs, backward_jobs, forward, backward};
  return table;
}

}  // namespace hybrid
