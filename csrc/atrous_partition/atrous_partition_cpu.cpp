// CPU kernels of atrous_partition and atrous_merge: copies of runs of elements, window by window.
//
// A run is the C channels of a slot, or a whole row of a window where its pixels are neighbours
// (dilation 1). Both ops are bound by memory bandwidth. Results too large for the caches are
// written past them: an ordinary store would first read the line that it is about to overwrite.
#include <string.h>

#include "../common/simd.h"
#include "atrous_partition.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kLine = 64;                       // bytes of a cache line
constexpr int64_t kStreamBytes = int64_t{8} << 20;  // results from this size on bypass the caches

// As floats, which these instructions move unchanged, whatever the bits mean.
inline void stream_line(void* to, const void* from) {
  for (int64_t i = 0; i < kLine / 4; i += kLanes)
    stream_one(static_cast<float*>(to) + i, load(static_cast<const float*>(from) + i));
}

// Where a window lies: slot (a, b) holds pixel (i + a d, j + b d), and the first `rows` x `columns`
// slots lie on the map.
struct Window {
  int64_t image, index, i, j, rows, columns;

  Window(const AtrousPartitionParams& p, int64_t item) {
    const int64_t count = p.d * p.d * p.nu * p.nv;
    image = item / count;
    index = item % count;
    const int64_t v = index % p.nv, u = index / p.nv % p.nu, phase = index / (p.nv * p.nu);
    i = u * p.P * p.d + phase / p.d;
    j = v * p.P * p.d + phase % p.d;
    rows = slots_on_map(p.H - i, p);
    columns = slots_on_map(p.W - j, p);
  }

  static int64_t slots_on_map(int64_t pixels, const AtrousPartitionParams& p) {
    if (pixels <= 0) return 0;
    const int64_t slots = ceil_div(pixels, p.d);
    return slots < p.P ? slots : p.P;
  }
};

// Elements of T, whatever they mean; kMerge copies from the windows to the map.
template <class T, bool kMerge>
class Copier {
 public:
  explicit Copier(const AtrousPartitionParams& p)
      : p_(p),
        is_unit_((p.map_stride[3] == 1 && p.windows_stride[3] == 1) || p.C == 1),
        has_neighbours_(is_unit_ && p.d == 1 && p.map_stride[2] == p.C &&
                        p.windows_stride[2] == p.C) {
    const int64_t bytes = p.B * p.H * p.W * p.C * static_cast<int64_t>(sizeof(T));
    streams_ = bytes >= kStreamBytes;
  }

  void copy(int64_t item) const {
    const Window w(p_, item);
    const int64_t runs = has_neighbours_ ? 1 : w.columns;
    const int64_t length = has_neighbours_ ? w.columns * p_.C : p_.C;
    T* window = static_cast<T*>(p_.windows) + w.image * p_.windows_stride[0] +
                w.index * p_.windows_stride[1];
    T* corner = static_cast<T*>(p_.map) + w.image * p_.map_stride[0] + w.j * p_.map_stride[2];
    for (int64_t a = 0; a < w.rows; ++a) {
      T* slots = window + a * p_.P * p_.windows_stride[2];
      T* pixels = corner + (w.i + a * p_.d) * p_.map_stride[1];
      for (int64_t b = 0; b < runs; ++b)
        copy_run(slots + b * p_.windows_stride[2], pixels + b * p_.d * p_.map_stride[2], length);
      if (!kMerge) fill(slots + w.columns * p_.C, (p_.P - w.columns) * p_.C);
    }
    if (!kMerge) fill(window + w.rows * p_.P * p_.C, (p_.P - w.rows) * p_.P * p_.C);
  }

 private:
  void copy_run(T* slot, T* pixel, int64_t length) const {
    T* to = kMerge ? pixel : slot;
    const T* from = kMerge ? slot : pixel;
    if (is_unit_) return copy_bytes(to, from, length * static_cast<int64_t>(sizeof(T)));
    const int64_t to_stride = kMerge ? p_.map_stride[3] : p_.windows_stride[3];
    const int64_t from_stride = kMerge ? p_.windows_stride[3] : p_.map_stride[3];
    for (int64_t c = 0; c < length; ++c) to[c * to_stride] = from[c * from_stride];
  }

  void copy_bytes(void* to, const void* from, int64_t bytes) const {
    const bool is_whole_lines = (reinterpret_cast<uintptr_t>(to) | bytes) % kLine == 0;
    if (!streams_ || !is_whole_lines) {
      memcpy(to, from, bytes);
      return;
    }
    for (int64_t i = 0; i < bytes; i += kLine)
      stream_line(static_cast<char*>(to) + i, static_cast<const char*>(from) + i);
  }

  void fill(T* to, int64_t count) const {
    const T value = static_cast<T>(p_.fill);
    for (int64_t c = 0; c < count; ++c) to[c] = value;
  }

  const AtrousPartitionParams& p_;
  bool is_unit_, has_neighbours_, streams_;
};

template <class T, bool kMerge>
void copy_items(const AtrousPartitionParams& p, int64_t begin, int64_t end) {
  const Copier<T, kMerge> copier(p);
  for (int64_t item = begin; item < end; ++item) copier.copy(item);
  stream_fence();
}

template <bool kMerge>
void copy_windows(const AtrousPartitionParams& p, int64_t begin, int64_t end) {
  if (p.element_size == 2) return copy_items<uint16_t, kMerge>(p, begin, end);
  if (p.element_size == 4) return copy_items<uint32_t, kMerge>(p, begin, end);
  return copy_items<uint64_t, kMerge>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const AtrousPartitionCpu& cpu_table<AtrousPartitionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr AtrousPartitionCpu table{copy_windows<false>, copy_windows<true>};
  return table;
}

}  // namespace hybrid
