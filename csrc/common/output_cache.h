// Memory of large CPU outputs, kept for the next output of about the same size.
//
// The C allocator returns large blocks to the system, so the first write to every page of a fresh
// output is a page fault, and those faults can cost more than the kernel that does the writing. A
// training step asks for the same sizes again and again: blocks that are freed wait here, up to a
// limit, the least recently freed leave first. The same idea as torch's caching allocator on GPUs.
//
// Outputs that live in such blocks are tensors over foreign memory with a deleter, which torch can
// make since 2.11; with an older torch nothing is kept.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybrid {

// Blocks below are left to the C allocator, which does keep small ones.
constexpr size_t kSmallestKept = size_t{1} << 20;

// A block of at least `bytes`, of memory that was freed before where there is some; nullptr where
// nothing is to be kept: small blocks, a limit of 0, an older torch, or no memory left.
void* take_output_block(size_t bytes);

// The deleter: back into the cache, or to the system when the limit is reached.
void release_output_block(void* data, void* unused);

}  // namespace hybrid

// For Python, by ctypes.
extern "C" {
// The most bytes to keep from now on; what is kept beyond them is freed at once.
void hybrid_set_output_cache_limit(uint64_t bytes);
uint64_t hybrid_output_cache_limit();
// Bytes that are kept now, in blocks that no tensor uses.
uint64_t hybrid_output_cache_kept();
// Whether this torch can hand out such memory.
int hybrid_output_cache_supported();
}
