// Huge pages for large fresh outputs.
//
// The allocator hands out large tensors as fresh mappings: their first writes fault page by page,
// and with pages of 4 KiB that costs more than many kernels that do the writing. Asked for in time,
// Linux maps 2 MiB at once, and the kernel that writes misses the translation buffer less often.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hybrid {

// To be called after the allocation and before the first write. Only a hint: memory that is already
// mapped, small or not the system's to advise stays as it is.
inline void advise_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (begin + kHuge < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace hybrid
