// Atomics, as compare-and-swap: the race detector knows them for what they are.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace hybrid::emulator {

template <class T, class Update>
T atomic_update(T* address, Update update) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  Word* const word = reinterpret_cast<Word*>(address);
  Word before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
  T old_value;
  do {
    memcpy(static_cast<void*>(&old_value), &before, sizeof before);
    const T new_value = update(old_value);
    memcpy(&after, static_cast<const void*>(&new_value), sizeof after);
  } while (!__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
  return old_value;
}

// Keeps a parameter out of the deduction of T: atomicAdd(&an_unsigned, 1).
template <class T>
using Same = std::common_type_t<T>;

}  // namespace hybrid::emulator

template <class T>
T atomicAdd(T* address, hybrid::emulator::Same<T> value) {
  return hybrid::emulator::atomic_update(address, [&](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, hybrid::emulator::Same<T> value) {
  return hybrid::emulator::atomic_update(address, [&](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* address, hybrid::emulator::Same<T> value) {
  return hybrid::emulator::atomic_update(address, [&](T old) { return old < value ? old : value; });
}
template <class T>
T atomicExch(T* address, hybrid::emulator::Same<T> value) {
  return hybrid::emulator::atomic_update(address, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* address, hybrid::emulator::Same<T> expected, hybrid::emulator::Same<T> value) {
  return hybrid::emulator::atomic_update(address,
                                         [&](T old) { return old == expected ? value : old; });
}
