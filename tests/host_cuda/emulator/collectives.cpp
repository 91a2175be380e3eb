// Where threads meet: warp collectives and the block's barrier, with every way to miss each other
// reported.
#include "block.h"

namespace hybrid::emulator {
namespace {

// Checks that the lanes of `mask` are in one and the same call.
void check_convergence(const Thread* warp, uint32_t mask) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Thread& other = warp[lane];
    if (other.mask == mask && other.function == self->function &&
        other.site.line == self->site.line)
      continue;
    set_error(*self, self->site, "warp divergence: %s (mask %08x) meets %s (%s:%d, mask %08x)",
              self->op, mask, other.op, other.site.file, other.site.line, other.mask);
    exit_thread();
  }
}

}  // namespace

void warp_collective(const char* op, uint32_t mask, const void* in, void* out, int argument,
                     WarpFunction function, Site site) {
  Thread* const warp = &block->threads[self->warp_begin()];
  const int lanes = std::min<int>(kWarpSize, block->threads.size() - self->warp_begin());
  if (lanes < kWarpSize && mask == kFullMask) mask = (1u << lanes) - 1;
  self->op = op;
  self->site = site;
  self->mask = mask;
  self->in = in;
  self->out = out;
  self->argument = argument;
  self->function = function;
  if (!(mask >> self->lane & 1)) {
    set_error(*self, site, "%s: the calling lane is not in its mask %08x", op, mask);
    exit_thread();
  }
  self->state = State::at_collective;
  self->arrived.release();
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (lane >= lanes || warp[lane].state == State::exited) {
      set_error(*self, site, "%s: mask %08x names lane %d, which has exited or does not exist", op,
                mask, lane);
      exit_thread();
    }
    if (warp[lane].state != State::at_collective) {
      wait_in(State::at_collective);  // the last lane to arrive does the work for all
      self->released.acquire();
      return;
    }
  }
  check_convergence(warp, mask);
  const void* ins[kWarpSize] = {};
  void* outs[kWarpSize] = {};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    ins[lane] = warp[lane].in;
    outs[lane] = warp[lane].out;
    warp[lane].arrived.acquire();
  }
  if (function) function(ins, outs, argument);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    warp[lane].state = State::ready;
    warp[lane].released.release();
  }
}

void require_full_warp(const char* op, Site site) {
  if (block->threads.size() - self->warp_begin() >= kWarpSize) return;
  set_error(*self, site, "%s needs all 32 lanes, but the block's last warp has fewer", op);
  exit_thread();
}

static void wait_at_barrier(const char* op, int predicate, Site site) {
  self->op = op;
  self->site = site;
  self->predicate = predicate;
  Order& order = block->barrier[block->barrier_generation & 1];
  order.release();
  wait_in(State::at_barrier);
  order.acquire();
}

void block_barrier(Site site) { wait_at_barrier("__syncthreads", 0, site); }

int block_vote(Vote vote, int predicate, Site site) {
  wait_at_barrier("__syncthreads vote", predicate, site);
  switch (vote) {
    case Vote::count:
      return block->votes_true;
    case Vote::all:
      return block->votes_true == block->votes;
    default:
      return block->votes_true > 0;
  }
}

void open_barrier() {
  int at_barrier = 0, exited = 0;
  const Thread *first = nullptr, *stuck = nullptr;
  for (const Thread& thread : block->threads) {
    if (thread.state == State::at_barrier && ++at_barrier == 1) first = &thread;
    if (thread.state == State::at_collective && !stuck) stuck = &thread;
    exited += thread.state == State::exited;
  }
  if (stuck) {
    set_error(*stuck, stuck->site,
              "dead lock: a lane waits in %s (mask %08x) for lanes that do not come; %d threads "
              "are in __syncthreads, %d have exited",
              stuck->op, stuck->mask, at_barrier, exited);
    return;
  }
  if (exited) {
    set_error(*first, first->site, "%d threads wait in %s but %d have exited", at_barrier,
              first->op, exited);
    return;
  }
  block->votes_true = 0;
  block->votes = at_barrier;
  for (Thread& thread : block->threads) {
    if (thread.site.line != first->site.line) {
      set_error(thread, thread.site, "divergent barriers: %s here, but %s at %s:%d", thread.op,
                first->op, first->site.file, first->site.line);
      return;
    }
    block->votes_true += thread.predicate != 0;
  }
  ++block->barrier_generation;
  for (Thread& thread : block->threads) thread.state = State::ready;
}

}  // namespace hybrid::emulator
