// Huge pages for large fresh outputs, on request: HYBRID_KERNELS_HUGE_PAGES=1.
//
// The allocator hands out large tensors as fresh mappings: their first writes fault page by page,
// and with pages of 4 KiB that can cost more than the kernel that does the writing. Huge pages take
// 512 faults in one. Not by default: in a virtual machine whose host takes free memory back they
// can cost several times as much as small ones. To keep freed memory helps on every machine:
// output_cache.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hybrid {

inline bool huge_pages_wanted() {
  static const bool wanted = [] {
    const char* wish = std::getenv("HYBRID_KERNELS_HUGE_PAGES");
    return wish && wish[0] == '1';
  }();
  return wanted;
}

// To be called after the allocation and before the first write. Only a hint: memory that is already
// mapped, small or not the system's to advise stays as it is.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kSmallest = size_t{4} << 20;  // of outputs that are worth it
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (bytes >= kSmallest && begin + kHuge < end && huge_pages_wanted())
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace hybrid
