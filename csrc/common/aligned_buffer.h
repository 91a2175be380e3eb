// A worker's private array: cache-line aligned, left uninitialised, freed with its owner. Not an
// element longer than asked for, so that AddressSanitizer sees what lies beyond.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace hybrid {
namespace {  // compiled once per instruction set: see cpu_isa.h

template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t count) {
    void* data = nullptr;
    if (posix_memalign(&data, kAlign, count * sizeof(T)) != 0) std::abort();
    data_ = static_cast<T*>(data);
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
