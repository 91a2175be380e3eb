// Shared memory and the queue of cp.async. Shared memory starts out as 0xff bytes in every block:
// NaN in all floating point types, and an index that goes far astray.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "block.h"

namespace hybrid::emulator {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kRedZone = 16;  // between static arrays

// Not memset: the race detector would take that for an access of the scheduler.
void fill_with_ones(void* begin, size_t bytes) {
  volatile unsigned char* p = static_cast<unsigned char*>(begin);
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) *reinterpret_cast<volatile uint64_t*>(p + i) = ~uint64_t{0};
  for (; i < bytes; ++i) p[i] = 0xff;
}

}  // namespace

size_t Block::arena_bytes() const {
  return (kDefaultSharedLimit + dynamic_bytes + 2 * kPage - 1) / kPage * kPage;
}

void Block::reset_shared_memory() {
  if (!arena) {
    void* memory =
        mmap(nullptr, arena_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      perror("host emulator: no memory for shared memory");
      abort();
    }
    arena = static_cast<char*>(memory);
  }
  dynamic = arena + kDefaultSharedLimit;
  static_used = 0;
  array_count = 0;
  asan_unpoison(arena, arena_bytes());
  fill_with_ones(dynamic, dynamic_bytes);
  asan_poison(arena, kDefaultSharedLimit);
  char* const end = dynamic + dynamic_bytes;
  asan_poison(end, static_cast<size_t>(arena + arena_bytes() - end));
}

void Block::free_shared_memory() {
  if (!arena) return;
  asan_unpoison(arena, arena_bytes());
  munmap(arena, arena_bytes());
  arena = nullptr;
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  for (int i = 0; i < block->array_count; ++i)
    if (block->arrays[i].key == key) return block->arrays[i].address;
  const Site site{"HYBRID_SHARED", 0};
  if (block->array_count == kMaxSharedArrays) fail("too many shared arrays in one block", site);
  const size_t offset = ceil_to(block->static_used, alignment);
  if (offset + bytes > kDefaultSharedLimit) fail("more than 48 KiB of static shared memory", site);
  char* const address = block->arena + offset;
  block->static_used = ceil_to(offset + bytes, kRedZone) + kRedZone;
  block->arrays[block->array_count++] = {key, address};
  asan_unpoison(address, bytes);
  fill_with_ones(address, bytes);
  return address;
}

void* dynamic_shared() { return block->dynamic; }

void async_push(void* dst, const void* src, int src_bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(dst) % 16 || reinterpret_cast<uintptr_t>(src) % 16)
    fail("cp_async16: an address is not 16-byte aligned", site);
  if (src_bytes < 0 || src_bytes > 16) fail("cp_async16: src_bytes is not in 0..16", site);
  if (self->end_copy == kMaxAsyncCopies) fail("cp_async16: too many copies in flight", site);
  self->copies[self->end_copy++] = {dst, src, src_bytes, self->group};
}

void async_commit() { ++self->group; }

const AsyncCopy* async_pop(int keep) {
  if (self->first_copy == self->end_copy) {
    self->first_copy = self->end_copy = 0;
    return nullptr;
  }
  const AsyncCopy& next = self->copies[self->first_copy];
  if (next.group >= self->group - keep) return nullptr;
  ++self->first_copy;
  return &next;
}

}  // namespace hybrid::emulator
