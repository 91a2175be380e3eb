// What AddressSanitizer and ThreadSanitizer must be told about fibers. Each function is empty in
// builds without its sanitizer. HYBRID_EMULATOR_TSAN stands for kernels built with
// ThreadSanitizer: the runtime itself is not, lest its own bookkeeping be reported.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(HYBRID_EMULATOR_TSAN)
extern "C" {
void __tsan_acquire(void*);
void __tsan_release(void*);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}
#endif

namespace hybrid::emulator {

#if defined(HYBRID_EMULATOR_TSAN)
constexpr bool kRaceDetector = true;
#else
constexpr bool kRaceDetector = false;
#endif

// A place through which order between fibers is handed on: what happened before a release is seen
// by whoever acquires afterwards.
struct Order {
  char address;

  void release() {
#if defined(HYBRID_EMULATOR_TSAN)
    __tsan_release(&address);
#endif
  }
  void acquire() {
#if defined(HYBRID_EMULATOR_TSAN)
    __tsan_acquire(&address);
#endif
  }
};

inline void* tsan_this_fiber() {
#if defined(HYBRID_EMULATOR_TSAN)
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}

inline void* tsan_new_fiber() {
#if defined(HYBRID_EMULATOR_TSAN)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}

inline void tsan_delete_fiber([[maybe_unused]] void* fiber) {
#if defined(HYBRID_EMULATOR_TSAN)
  __tsan_destroy_fiber(fiber);
#endif
}

inline void tsan_switch([[maybe_unused]] void* fiber) {
#if defined(HYBRID_EMULATOR_TSAN)
  __tsan_switch_to_fiber(fiber, 1);  // 1: switching alone orders nothing
#endif
}

inline void asan_poison([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(begin, bytes);
#endif
}

inline void asan_unpoison([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(begin, bytes);
#endif
}

// A null fake_stack says that the running fiber will not come back.
inline void asan_before_switch([[maybe_unused]] void** fake_stack,
                               [[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
#endif
}

inline void asan_after_switch([[maybe_unused]] void* fake_stack,
                              [[maybe_unused]] const void** old_stack = nullptr,
                              [[maybe_unused]] size_t* old_bytes = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, old_stack, old_bytes);
#endif
}

}  // namespace hybrid::emulator
