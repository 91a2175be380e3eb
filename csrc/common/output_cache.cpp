#include "output_cache.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <unordered_map>

#include "large_alloc.h"
#include "stable_blob.h"

namespace hybrid {
namespace {

constexpr size_t kPage = 4096;
constexpr uint64_t kDefaultLimit = uint64_t{512} << 20;

struct Block {
  void* data;
  size_t bytes;
};

class OutputCache {
 public:
  void* take(size_t bytes) {
    const size_t wanted = (bytes + kPage - 1) / kPage * kPage;
    std::lock_guard<std::mutex> lock(mutex_);
    if (limit_ == 0) return nullptr;
    Block block = best_fit(wanted);
    if (block.data == nullptr) block = fresh(wanted);
    if (block.data == nullptr) return nullptr;
    in_use_[block.data] = block.bytes;
    return block.data;
  }

  void release(void* data) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = in_use_.find(data);
    free_.push_back({data, found->second});
    kept_ += found->second;
    in_use_.erase(found);
    shrink();
  }

  void set_limit(uint64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    shrink();
  }

  uint64_t limit() {
    std::lock_guard<std::mutex> lock(mutex_);
    return limit_;
  }

  uint64_t kept() {
    std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

 private:
  static Block fresh(size_t bytes) {
    void* data = std::aligned_alloc(kPage, bytes);
    if (data != nullptr) advise_huge_pages(data, bytes);
    return {data, bytes};
  }

  // The smallest free block that is large enough; at most an eighth of it may be wasted.
  Block best_fit(size_t wanted) {
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      const bool fits = it->bytes >= wanted && it->bytes - wanted <= it->bytes / 8;
      if (fits && (best == free_.end() || it->bytes < best->bytes)) best = it;
    }
    if (best == free_.end()) return {nullptr, 0};
    const Block block = *best;
    free_.erase(best);
    kept_ -= block.bytes;
    return block;
  }

  void shrink() {
    while (kept_ > limit_) {
      kept_ -= free_.front().bytes;
      std::free(free_.front().data);
      free_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> free_;  // in the order in which they were freed
  std::unordered_map<void*, size_t> in_use_;
  uint64_t kept_ = 0;
  uint64_t limit_ = kDefaultLimit;
};

// Never destroyed: tensors may outlive the static objects of this library.
OutputCache& output_cache() {
  static OutputCache* cache = new OutputCache;
  return *cache;
}

}  // namespace

void* take_output_block(size_t bytes) {
  if (bytes < kSmallestKept || !torch_makes_blobs_with_deleter()) return nullptr;
  return output_cache().take(bytes);
}

void release_output_block(void* data, void*) { output_cache().release(data); }

}  // namespace hybrid

extern "C" {

__attribute__((visibility("default"))) void hybrid_set_output_cache_limit(uint64_t bytes) {
  hybrid::output_cache().set_limit(bytes);
}

__attribute__((visibility("default"))) uint64_t hybrid_output_cache_limit() {
  return hybrid::output_cache().limit();
}

__attribute__((visibility("default"))) uint64_t hybrid_output_cache_kept() {
  return hybrid::output_cache().kept();
}

__attribute__((visibility("default"))) int hybrid_output_cache_supported() {
  return hybrid::torch_makes_blobs_with_deleter();
}
}
