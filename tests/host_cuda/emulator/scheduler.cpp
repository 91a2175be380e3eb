// Launches: block after block, every thread a fiber that runs until it must wait for others. The
// order in which threads and blocks get their turn is HYBRID_EMU_ORDER: fwd, rev, or the seed of a
// random one. A correct kernel gives the same bits in all of them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <string>

#include "block.h"

namespace hybrid::emulator {

Indices indices;
Block* block;
Thread* self;

namespace {

// The cudaError_t of the cases that a GPU also refuses, and cudaErrorLaunchFailure for the rest.
constexpr int kInvalidValue = 1;
constexpr int kInvalidConfiguration = 9;
constexpr int kLaunchFailure = 719;

// Races are looked for among this many consecutive blocks: each has threads of its own, which know
// nothing of the others'. More would make the race detector, whose cost grows with the number of
// fibers, slower; fibers made anew for every block would cost it 1 ms each.
constexpr size_t kUnorderedBlocks = kRaceDetector ? 4 : 1;

std::mutex one_launch;
char error[1024];
thread_local std::string last_error;
std::vector<Fiber> spare_fibers;  // kept from launch to launch
std::map<const void*, size_t> opted_in;

const char* order_name() {
  const char* name = getenv("HYBRID_EMU_ORDER");
  return name && *name ? name : "fwd";
}

class Schedule {
 public:
  explicit Schedule(uint64_t blocks) : blocks_(blocks) {
    const char* name = order_name();
    reverse_ = !strcmp(name, "rev");
    if (reverse_ || !strcmp(name, "fwd")) return;
    random_ = true;
    generator_.seed(static_cast<unsigned>(strtoul(name, nullptr, 10)));
    step_ = generator_() % blocks_ + 1;
    while (std::gcd(step_, blocks_) != 1) ++step_;
    offset_ = generator_() % blocks_;
  }

  // The i-th block to run.
  uint64_t block(uint64_t i) const {
    if (reverse_) return blocks_ - 1 - i;
    return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step_ + offset_) % blocks_);
  }

  std::vector<Thread*> threads(std::vector<Thread>& all) {
    std::vector<Thread*> order;
    for (Thread& thread : all) order.push_back(&thread);
    if (reverse_) std::reverse(order.begin(), order.end());
    return order;
  }

  // Before every round over the threads.
  void next_round(std::vector<Thread*>& order) {
    if (random_) std::shuffle(order.begin(), order.end(), generator_);
  }

 private:
  uint64_t blocks_, step_ = 1, offset_ = 0;
  bool reverse_ = false, random_ = false;
  std::mt19937 generator_;
};

void run_thread_body() {
  fiber_entered();
  block->started.acquire();
  block->ended.acquire();  // of the block that had these threads and this shared memory before
  (*block->body)();
  if (self->end_copy != self->first_copy)
    set_error(*self, {"end of the kernel", 0}, "a thread exits with cp.async still in flight");
  exit_thread();
}

Fiber take_fiber() {
  Fiber fiber;
  if (spare_fibers.empty()) {
    fiber.allocate_stack();
    fiber.tsan = tsan_new_fiber();
  } else {
    fiber = spare_fibers.back();
    spare_fibers.pop_back();
  }
  return fiber;
}

// After the launch: what its threads did is before everything that comes.
void join_threads(Block& b) {
  b.ended.acquire();
  for (Order& order : b.barrier) order.acquire();
  for (Thread& thread : b.threads) {
    thread.arrived.acquire();
    if (failed()) {  // it may have stopped in the midst of a kernel
      tsan_delete_fiber(thread.fiber.tsan);
      thread.fiber.free_stack();
    } else {
      spare_fibers.push_back(thread.fiber);
    }
  }
}

void run_block(Block& b, Schedule& schedule) {
  block = &b;
  b.barrier_generation = 0;
  b.reset_shared_memory();
  for (Thread& thread : b.threads) {
    thread.fiber.start_at(run_thread_body);
    thread.state = State::ready;
    thread.first_copy = thread.end_copy = thread.group = 0;
  }
  b.started.release();
  std::vector<Thread*> order = schedule.threads(b.threads);
  size_t exited = 0;
  while (exited < order.size() && !failed()) {
    schedule.next_round(order);
    bool progress = false;
    for (Thread* thread : order) {
      if (thread->state != State::ready) continue;
      progress = true;
      self = thread;
      indices.thread = thread->index;
      switch_to(thread->fiber);
      exited += thread->state == State::exited;
      if (failed()) break;
    }
    if (!progress) open_barrier();
  }
  self = nullptr;
  block = nullptr;
}

void make_threads(Block& b, dim3 dim) {
  b.threads.resize(static_cast<size_t>(dim.x) * dim.y * dim.z);
  for (unsigned i = 0; i < b.threads.size(); ++i) {
    b.threads[i].index = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
    b.threads[i].lane = static_cast<int>(i % kWarpSize);
    b.threads[i].warp = static_cast<int>(i / kWarpSize);
    b.threads[i].fiber = take_fiber();
  }
}

int refuse(int code, std::string message) {
  fprintf(stderr, "host emulator: %s\n", message.c_str());
  last_error = std::move(message);
  return code;
}

int check_order() {
  const std::string name = order_name();
  if (name == "fwd" || name == "rev" || name.find_first_not_of("0123456789") == name.npos) return 0;
  return refuse(kInvalidValue,
                "HYBRID_EMU_ORDER=" + name + ": expected fwd, rev or a number (a seed)");
}

int check_geometry(const void* kernel, dim3 grid, dim3 dim, size_t shared_bytes) {
  const auto text = [](const char* what, dim3 d) {
    return std::string(what) + " (" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " +
           std::to_string(d.z) + ")";
  };
  const uint64_t threads = static_cast<uint64_t>(dim.x) * dim.y * dim.z;
  if (threads == 0 || threads > 1024 || dim.z > 64)
    return refuse(kInvalidConfiguration,
                  text("block", dim) + ": expected 1 to 1024 threads, z <= 64");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    return refuse(kInvalidConfiguration,
                  text("grid", grid) + ": expected x in 1..2^31-1, y and z in 1..65535");
  const auto found = opted_in.find(kernel);
  const size_t allowed = std::max(found == opted_in.end() ? 0 : found->second, kDefaultSharedLimit);
  if (shared_bytes > allowed)
    return refuse(kInvalidValue, "launch with " + std::to_string(shared_bytes) +
                                     " bytes of dynamic shared memory, but this kernel may have " +
                                     std::to_string(allowed) +
                                     "; HYBRID_SMEM_OPT_IN asks for more");
  return 0;
}

}  // namespace

bool failed() { return error[0] != 0; }

void set_error(const Thread& thread, Site site, const char* format, ...) {
  if (failed()) return;
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  const char* slash = strrchr(site.file, '/');
  snprintf(error, sizeof error, "%s [%s:%d, block (%u, %u, %u), thread (%u, %u, %u)]", message,
           slash ? slash + 1 : site.file, site.line, indices.block.x, indices.block.y,
           indices.block.z, thread.index.x, thread.index.y, thread.index.z);
}

void fail(const char* message, Site site) {
  set_error(*self, site, "%s", message);
  exit_thread();
}

void exit_thread() {
  self->state = State::exited;
  block->ended.release();
  switch_back(self->fiber, true);
  abort();  // never switched to again
}

void wait_in(State state) {
  Thread* const me = self;
  me->state = state;
  switch_back(me->fiber, false);
}

int launch(const void* kernel, dim3 grid, dim3 dim, size_t shared_bytes,
           const std::function<void()>& body) {
  const std::lock_guard<std::mutex> guard(one_launch);
  last_error.clear();
  if (const int code = check_order()) return code;
  if (const int code = check_geometry(kernel, grid, dim, shared_bytes)) return code;
  error[0] = 0;
  indices.block_dim = dim;
  indices.grid_dim = grid;
  const uint64_t count = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  std::vector<Block> blocks(std::min<uint64_t>(count, kUnorderedBlocks));
  for (Block& b : blocks) {
    b.body = &body;
    b.dynamic_bytes = shared_bytes;
    make_threads(b, dim);
  }
  Schedule schedule(count);
  for (uint64_t i = 0; i < count && !failed(); ++i) {
    const uint64_t k = schedule.block(i);
    indices.block = {static_cast<unsigned>(k % grid.x), static_cast<unsigned>(k / grid.x % grid.y),
                     static_cast<unsigned>(k / grid.x / grid.y)};
    run_block(blocks[i % blocks.size()], schedule);
  }
  for (Block& b : blocks) {
    join_threads(b);
    b.free_shared_memory();
  }
  return failed() ? refuse(kLaunchFailure, error) : 0;
}

int shared_memory_opt_in(const void* kernel, size_t bytes) {
  if (bytes > kSharedLimit)
    return refuse(kInvalidValue, "HYBRID_SMEM_OPT_IN: more than 227 KiB of shared memory");
  const std::lock_guard<std::mutex> guard(one_launch);
  opted_in[kernel] = bytes;
  return 0;
}

}  // namespace hybrid::emulator

const char* hybrid_emulator_error() { return hybrid::emulator::last_error.c_str(); }
