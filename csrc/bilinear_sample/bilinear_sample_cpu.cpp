// bilinear_sample on the CPU: a vector of channels of the four corners of a point at a time.
// Compiled once per instruction set.
#include "../common/aligned_buffer.h"
#include "../common/arithmetic.h"
#include "../common/partial_sums.h"
#include "../common/streaming.h"
#include "bilinear_sample.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

using Params = BilinearSampleParams;

// A coordinate, clamped to its axis, between two pixels. A NaN has pixels too, but a NaN fraction.
template <class Scalar>
struct Place {
  int64_t low, high;
  Scalar fraction;  // the weight of `high`
  bool is_free;     // was not clamped

  Place(Scalar position, int64_t length) {
    const Scalar last = static_cast<Scalar>(length - 1);
    is_free = position >= 0 && position <= last;
    const Scalar clamped = position < 0 ? 0 : position > last ? last : position;
    low = clamped > 0 ? static_cast<int64_t>(clamped) : 0;
    high = low + 1 < length ? low + 1 : low;
    fraction = clamped - static_cast<Scalar>(low);
  }
};

template <class T>
struct Points {
  using Scalar = typename Arithmetic<T>::Scalar;
  const Params& p;

  int64_t pixel(int64_t row, int64_t j) const { return row * p.out_W + j; }
  Place<Scalar> along_rows(int64_t row, int64_t j) const {
    return place(row % p.out_H, offset(row, j)[1], p.H);
  }
  Place<Scalar> along_columns(int64_t row, int64_t j) const {
    return place(j, offset(row, j)[0], p.W);
  }

 private:
  const Scalar* offset(int64_t row, int64_t j) const {
    return static_cast<const Scalar*>(p.offset) + 2 * pixel(row, j);
  }
  static Place<Scalar> place(int64_t step, Scalar shift, int64_t length) {
    return {static_cast<Scalar>(2 * step) + Scalar(0.5) + shift, length};
  }
};

// The corners of a point: the pixels of x, and their weights.
template <class T>
struct Corners {
  using Scalar = typename Arithmetic<T>::Scalar;
  const T* pixel[4];  // upper left, upper right, lower left, lower right
  Place<Scalar> y, x;

  Corners(const Params& p, int64_t row, int64_t j)
      : y(Points<T>{p}.along_rows(row, j)), x(Points<T>{p}.along_columns(row, j)) {
    const int64_t image = row / p.out_H, step = p.x.stride[2];
    for (int k = 0; k < 4; ++k)
      pixel[k] = p.x.row<T>(image, k < 2 ? y.low : y.high, (k % 2 ? x.high : x.low) * step);
  }
};

template <class Scalar>
void weigh(const Place<Scalar>& y, const Place<Scalar>& x, Scalar (&weight)[4]) {
  weight[0] = (1 - y.fraction) * (1 - x.fraction);
  weight[1] = (1 - y.fraction) * x.fraction;
  weight[2] = y.fraction * (1 - x.fraction);
  weight[3] = y.fraction * x.fraction;
}

template <class T>
void forward_rows(const Params& p, int64_t begin, int64_t end) {
  using V = typename Arithmetic<T>::Vector;
  const int64_t bytes = p.C * static_cast<int64_t>(sizeof(T));
  const bool streams =
      streams_rows(reinterpret_cast<uintptr_t>(p.y.data), bytes, p.B * p.out_H * p.out_W * bytes);
  for (int64_t row = begin; row < end; ++row) {
    T* y = p.y.row<T>(row / p.out_H, row % p.out_H, 0);
    for (int64_t j = 0; j < p.out_W; ++j, y += p.C) {
      const Corners<T> at(p, row, j);
      typename Arithmetic<T>::Scalar weight[4];
      weigh(at.y, at.x, weight);
      const V w0 = broadcast(weight[0]), w1 = broadcast(weight[1]);
      const V w2 = broadcast(weight[2]), w3 = broadcast(weight[3]);
      for_each_vector<T>(p.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const V upper =
            fma(w1, load_lanes(at.pixel[1] + c, lanes), w0 * load_lanes(at.pixel[0] + c, lanes));
        const V lower =
            fma(w3, load_lanes(at.pixel[3] + c, lanes), w2 * load_lanes(at.pixel[2] + c, lanes));
        stream_lanes(y + c, upper + lower, lanes, streams);
      });
    }
  }
  stream_fence();
}

template <class T>
void offset_rows(const Params& p, int64_t begin, int64_t end) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  for (int64_t row = begin; row < end; ++row) {
    const T* grad = p.grad.row<T>(row / p.out_H, row % p.out_H, 0);
    Scalar* to = static_cast<Scalar*>(p.grad_offset) + 2 * row * p.out_W;
    for (int64_t j = 0; j < p.out_W; ++j, grad += p.grad.stride[2], to += 2) {
      const Corners<T> at(p, row, j);
      const V fy = broadcast(at.y.fraction), fx = broadcast(at.x.fraction);
      V along_x = broadcast(Scalar(0)), along_y = along_x;
      for_each_vector<T>(p.C, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        const V g = load_lanes(grad + c, lanes);
        const V a = load_lanes(at.pixel[0] + c, lanes), b = load_lanes(at.pixel[1] + c, lanes);
        const V d = load_lanes(at.pixel[2] + c, lanes), e = load_lanes(at.pixel[3] + c, lanes);
        const V upper = b - a, lower = e - d, left = d - a, right = e - b;
        along_x = fma(g, fma(fy, lower - upper, upper), along_x);
        along_y = fma(g, fma(fx, right - left, left), along_y);
      });
      to[0] = at.x.is_free ? sum(along_x) : 0;
      to[1] = at.y.is_free ? sum(along_y) : 0;
    }
  }
}

// Channels of a block: as many as leave a job for each of several threads.
inline int64_t block_channels(const Params& p) {
  int64_t width = 64;
  while (width > 16 && p.B * ceil_div(p.C, width) < 8) width /= 2;
  return width;
}

int64_t blocks(const Params& p) { return p.B * ceil_div(p.C, block_channels(p)); }

// The gradient of a block of channels of an image: point after point adds to its four corners, in
// float, in place where the map is of that type.
template <class T>
void map_blocks(const Params& p, int64_t begin, int64_t end) {
  using Scalar = typename Arithmetic<T>::Scalar;
  using V = typename Arithmetic<T>::Vector;
  constexpr bool kInPlace = std::is_same_v<T, Scalar>;
  const int64_t width = block_channels(p), per_image = ceil_div(p.C, width), pixels = p.H * p.W;
  const int64_t pitch = kInPlace ? p.C : width;
  AlignedBuffer<Scalar> buffer(static_cast<size_t>(kInPlace ? 1 : pixels * width));
  for (int64_t block = begin; block < end; ++block) {
    const int64_t image = block / per_image, first = block % per_image * width;
    const int64_t channels = p.C - first < width ? p.C - first : width;
    T* dx = p.grad_x.row<T>(image, 0, first);
    Scalar* total = buffer;
    if constexpr (kInPlace) total = dx;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) zero(total + pixel * pitch, channels);
    for (int64_t i = 0; i < p.out_H; ++i) {
      const T* grad = p.grad.row<T>(image, i, first);
      for (int64_t j = 0; j < p.out_W; ++j, grad += p.grad.stride[2]) {
        const Points<T> points{p};
        const auto y = points.along_rows(image * p.out_H + i, j);
        const auto x = points.along_columns(image * p.out_H + i, j);
        Scalar weight[4];
        weigh(y, x, weight);
        for (int k = 0; k < 4; ++k) {
          const int64_t pixel = (k < 2 ? y.low : y.high) * p.W + (k % 2 ? x.high : x.low);
          Scalar* to = total + pixel * pitch;
          const V w = broadcast(weight[k]);
          for_each_vector<T>(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
            store_lanes(to + c, fma(w, load_lanes(grad + c, lanes), load_lanes(to + c, lanes)),
                        lanes);
          });
        }
      }
    }
    for (int64_t pixel = 0; !kInPlace && pixel < pixels; ++pixel)
      for_each_vector<T>(channels, [&](int64_t c, auto lanes) __attribute__((always_inline)) {
        store_lanes(dx + pixel * p.C + c, load_lanes(total + pixel * pitch + c, lanes), lanes);
      });
  }
}

void forward(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { forward_rows<decltype(x)>(p, begin, end); });
}

void backward_offset(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { offset_rows<decltype(x)>(p, begin, end); });
}

void backward_map(const Params& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto x) { map_blocks<decltype(x)>(p, begin, end); });
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const BilinearSampleCpu& cpu_table<BilinearSampleCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr BilinearSampleCpu table{forward, backward_offset, blocks, backward_map};
  return table;
}

}  // namespace hybrid
