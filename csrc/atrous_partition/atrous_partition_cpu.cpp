// CPU kernels of atrous_partition and atrous_merge: copies of runs of elements, map row by map row.
//
// A run is the C channels of a pixel, or the pixels of a window's row where they are neighbours
// (dilation 1). Both ops are bound by memory bandwidth. Along a row of the map one side of the copy
// is contiguous; the other comes in runs too short for the processor to foresee. Results too large
// for the caches are written past them, which makes short runs as good as long ones (an ordinary
// store would first read the line that it is about to overwrite), and merge, whose source is the
// scattered side, asks for the next run while it copies one.
#include <string.h>

#include "../common/simd.h"
#include "atrous_partition.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

constexpr int64_t kLine = 64;                       // bytes of a cache line
constexpr int64_t kStreamBytes = int64_t{4} << 20;  // results from this size on bypass the caches

// A line as floats, which these instructions move unchanged, whatever the bits mean.
inline void copy_line(void* to, const void* from) {
  for (int64_t i = 0; i < kLine / 4; i += kLanes)
    store(static_cast<float*>(to) + i, load(static_cast<const float*>(from) + i));
}
inline void stream_line(void* to, const void* from) {
  for (int64_t i = 0; i < kLine / 4; i += kLanes)
    stream_one(static_cast<float*>(to) + i, load(static_cast<const float*>(from) + i));
}

// memcpy for runs of some lines, where finding the best way costs it as much as copying.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes < kLine) {
    memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i <= bytes - kLine; i += kLine) copy_line(to + i, from + i);
  copy_line(to + bytes - kLine, from + bytes - kLine);  // the rest, and some of it again
}

// Elements of T, whatever they mean; kMerge copies from the windows to the map.
template <class T, bool kMerge>
class RowCopier {
 public:
  explicit RowCopier(const AtrousPartitionParams& p)
      : p_(p),
        is_unit_((p.map_stride[3] == 1 && p.windows_stride[3] == 1) || p.C == 1),
        run_(is_unit_ && p.d == 1 && p.map_stride[2] == p.C && p.windows_stride[2] == p.C ? p.P
                                                                                          : 1) {
    const int64_t bytes = p.B * p.H * p.W * p.C * static_cast<int64_t>(sizeof(T));
    streams_ = bytes >= kStreamBytes;
  }

  // Row i of an image, of the map as the windows extend it. It holds row a of the windows (u, v) of
  // the phases (p, q); the loops meet their pixels from left to right.
  void copy(int64_t item) const {
    const int64_t rows = p_.nu * p_.P * p_.d, image = item / rows, i = item % rows;
    const int64_t p = i % p_.d, a = i / p_.d % p_.P, u = i / (p_.d * p_.P);
    T* row = static_cast<T*>(p_.map) + image * p_.map_stride[0] + i * p_.map_stride[1];
    T* windows = static_cast<T*>(p_.windows) + image * p_.windows_stride[0] +
                 (p * p_.d * p_.nu + u) * p_.nv * p_.windows_stride[1] +
                 a * p_.P * p_.windows_stride[2];
    const int64_t phase_stride = p_.nu * p_.nv * p_.windows_stride[1];
    const int64_t columns = i < p_.H ? p_.W : 0;
    int64_t j = 0;
    for (int64_t v = 0; v < p_.nv; ++v) {
      for (int64_t b = 0; b < p_.P; b += run_) {
        T* first = windows + v * p_.windows_stride[1] + b * p_.windows_stride[2];
        T* slot = first;
        for (int64_t q = 0; q < p_.d; ++q, j += run_) {
          if (kMerge && j >= columns) return;
          T* next = q + 1 < p_.d ? slot + phase_stride : first + run_ * p_.windows_stride[2];
          copy_run(slot, row + j * p_.map_stride[2], columns - j, next);
          slot = next;
        }
      }
    }
  }

 private:
  // The run that begins at this slot and pixel, of which `pixels` or more lie on the map.
  void copy_run(T* slot, T* pixel, int64_t pixels, const T* next) const {
    const int64_t count = pixels < 0 ? 0 : pixels < run_ ? pixels : run_;
    T* to = kMerge ? pixel : slot;
    const T* from = kMerge ? slot : pixel;
    if (is_unit_)
      copy_elements(to, from, count * p_.C, next);
    else if (count)
      copy_strided(to, from);
    if (!kMerge) fill(slot + count * p_.C, (run_ - count) * p_.C);
  }

  void copy_elements(T* to, const T* from, int64_t count, const T* next) const {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    char* to_bytes = reinterpret_cast<char*>(to);
    const char* from_bytes = reinterpret_cast<const char*>(from);
    if (!streams_ || (reinterpret_cast<uintptr_t>(to) | bytes) % kLine != 0)
      return copy_bytes(to_bytes, from_bytes, bytes);
    for (int64_t i = 0; i < bytes; i += kLine) {
      if (kMerge) __builtin_prefetch(reinterpret_cast<const char*>(next) + i);
      stream_line(to_bytes + i, from_bytes + i);
    }
  }

  void copy_strided(T* to, const T* from) const {
    const int64_t to_stride = kMerge ? p_.map_stride[3] : p_.windows_stride[3];
    const int64_t from_stride = kMerge ? p_.windows_stride[3] : p_.map_stride[3];
    for (int64_t c = 0; c < p_.C; ++c) to[c * to_stride] = from[c * from_stride];
  }

  void fill(T* to, int64_t count) const {
    const T value = static_cast<T>(p_.fill);
    for (int64_t c = 0; c < count; ++c) to[c] = value;
  }

  const AtrousPartitionParams& p_;
  const bool is_unit_;
  const int64_t run_;  // pixels
  bool streams_;
};

template <class T, bool kMerge>
void copy_items(const AtrousPartitionParams& p, int64_t begin, int64_t end) {
  const RowCopier<T, kMerge> copier(p);
  for (int64_t item = begin; item < end; ++item) copier.copy(item);
  stream_fence();
}

template <bool kMerge>
void copy_rows(const AtrousPartitionParams& p, int64_t begin, int64_t end) {
  if (p.element_size == 2) return copy_items<uint16_t, kMerge>(p, begin, end);
  if (p.element_size == 4) return copy_items<uint32_t, kMerge>(p, begin, end);
  return copy_items<uint64_t, kMerge>(p, begin, end);
}

}  // namespace
}  // namespace HYBRID_ISA

template <>
const AtrousPartitionCpu& cpu_table<AtrousPartitionCpu, Isa::HYBRID_ISA>() {
  using namespace HYBRID_ISA;
  static constexpr AtrousPartitionCpu table{copy_rows<false>, copy_rows<true>};
  return table;
}

}  // namespace hybrid
