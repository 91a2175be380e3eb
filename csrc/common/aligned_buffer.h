// A worker's private array: cache-line aligned, left uninitialised, freed with its owner.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t count) {
    const size_t bytes = (count * sizeof(T) + kAlign) / kAlign * kAlign;
    data_ = static_cast<T*>(std::aligned_alloc(kAlign, bytes));
    if (!data_) std::abort();
  }
  ~AlignedBuffer() { std::free(data_); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  operator T*() const { return data_; }

 private:
  static constexpr size_t kAlign = 64;
  T* data_;
};

}  // namespace
}  // namespace hybrid
