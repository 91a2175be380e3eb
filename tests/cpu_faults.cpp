// Kernels with one mistake each, and one without: tests/test_cpu_asan.py shows that what
// tests/cpu_asan.py makes of the real kernels reports each of them. Like those, they work through
// the vector layer, on aligned buffers and on tiles on the stack, and know sizes at run time only.
#include <cstdint>

#include "../csrc/common/aligned_buffer.h"
#include "../csrc/common/simd.h"

namespace hybrid {
namespace HYBRID_ISA {
namespace {

template <class T>
void twice(T* to, const T* from) {
  const F v = load(from);
  store(to, v + v);
}

template <class T>
void fill_and_double(T* row, int64_t count, int64_t first, int64_t end) {
  for (int64_t i = 0; i < count; ++i) row[i] = T{};
  for (int64_t i = first; i < end; i += kLanes) twice(row + i, row + i);
}

void none(int64_t n) {
  AlignedBuffer<float> row(n);
  fill_and_double<float>(row, n, 0, n);
}

void past_the_end(int64_t n) {
  AlignedBuffer<float> row(n);
  fill_and_double<float>(row, n, 0, n + 1);
}

void before_the_start(int64_t n) {
  AlignedBuffer<float> row(n);
  fill_and_double<float>(row, n, -kLanes, n);
}

void read_past_the_end(int64_t n) {
  AlignedBuffer<bf16> row(n);
  AlignedBuffer<float> sums(n);
  for (int64_t i = 0; i < n; ++i) row[i] = bf16{};
  store(sums, load(row + n));
}

void after_free(int64_t n) {
  const float* freed;
  {
    AlignedBuffer<float> row(n);
    fill_and_double<float>(row, n, 0, n);
    freed = row;
  }
  AlignedBuffer<float> sums(n);
  store(sums, load(freed));
}

void past_a_tile(int64_t n) {
  float tile[4 * kLanes];
  fill_and_double<float>(tile, 4 * kLanes, 0, n + kLanes);
}

void past_a_list(int64_t n) {
  int32_t slots[4 * kLanes];
  for (int64_t i = 0; i <= n; ++i) slots[i] = static_cast<int32_t>(i);
  AlignedBuffer<float> row(n);
  for (int64_t i = 0; i < n; ++i) row[slots[i]] = 0;
}

void offset_overflow(int64_t n) {
  const int32_t stride = static_cast<int32_t>(n) << 20, last = stride * 1000;
  AlignedBuffer<int32_t> offsets(n);
  offsets[0] = last;
}

void shift_too_far(int64_t n) {
  AlignedBuffer<int32_t> offsets(n);
  offsets[0] = 1 << (n + 16);
}

void odd_flag(int64_t n) {
  AlignedBuffer<bool> flags(n);
  for (int64_t i = 0; i < n; ++i) reinterpret_cast<unsigned char*>(&flags[0])[i] = 0xbe;
  AlignedBuffer<float> row(n);
  row[0] = flags[n - 1] ? 1.f : 0.f;
}

void misaligned(int64_t n) {
  AlignedBuffer<float> row(n);
  *reinterpret_cast<int32_t*>(reinterpret_cast<char*>(&row[0]) + 2) = 1;
}

}  // namespace
}  // namespace HYBRID_ISA
}  // namespace hybrid

using namespace hybrid::HYBRID_ISA;

// Runs a kernel by its number, in the order of FAULTS in test_cpu_asan.py.
extern "C" __attribute__((visibility("default"))) void run_kernel(int number) {
  void (*const kernels[])(int64_t) = {
      none,        past_the_end,    before_the_start, read_past_the_end, after_free, past_a_tile,
      past_a_list, offset_overflow, shift_too_far,    odd_flag,          misaligned};
  kernels[number](4 * kLanes);
}
