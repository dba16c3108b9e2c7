// Warp collectives and block barriers: which threads wait for which, and their results.
#include "emu/state.h"

namespace simt {
namespace {

constexpr uint64_t kUndefined = 0xA5A5A5A5A5A5A5A5u;

// The lane that a shuffle reads, as PTX's shfl.sync defines it; the lane itself if out of range.
unsigned shuffle_source(const Request& r, unsigned lane) {
  const unsigned segment = static_cast<unsigned>(32 - r.width) & 31u;
  const unsigned first = lane & segment;
  const unsigned last = first | (~segment & 31u);
  const unsigned b = static_cast<unsigned>(r.argument) & 31u;
  switch (r.op) {
    case Op::kShuffleUp:
      return lane >= first + b ? lane - b : lane;
    case Op::kShuffleDown:
      return lane + b <= last ? lane + b : lane;
    case Op::kShuffleXor:
      return (lane ^ b) <= last ? lane ^ b : lane;
    default:
      return first | (b & ~segment);
  }
}

uint64_t combine(Op op, uint64_t a, uint64_t b) {
  const uint32_t x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);
  const int32_t sx = static_cast<int32_t>(x), sy = static_cast<int32_t>(y);
  switch (op) {
    case Op::kReduceAdd:
      return x + y;
    case Op::kReduceMinU:
      return x < y ? x : y;
    case Op::kReduceMaxU:
      return x > y ? x : y;
    case Op::kReduceMinS:
      return sx < sy ? x : y;
    case Op::kReduceMaxS:
      return sx > sy ? x : y;
    case Op::kReduceAnd:
      return x & y;
    case Op::kReduceOr:
      return x | y;
    default:
      return x ^ y;
  }
}

template <class F>
void for_each_lane(unsigned mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

uint64_t ballot(const Warp& w, unsigned mask) {
  uint64_t bits = 0;
  for_each_lane(mask, [&](unsigned i) { bits |= (w.lanes[i].request.value & 1) << i; });
  return bits;
}

// The lanes of the mask whose value is that of lane i.
uint64_t matches(const Warp& w, unsigned mask, unsigned i) {
  uint64_t bits = 0;
  for_each_lane(mask, [&](unsigned j) {
    if (w.lanes[j].request.value == w.lanes[i].request.value) bits |= 1ull << j;
  });
  return bits;
}

// The result of collectives that return the same to all lanes of the mask.
uint64_t common_result(const Warp& w, Op op, unsigned mask) {
  const unsigned first = static_cast<unsigned>(__builtin_ctz(mask));
  if (op == Op::kSyncWarp) return 0;
  if (op == Op::kBallot) return ballot(w, mask);
  if (op == Op::kAny) return ballot(w, mask) != 0;
  if (op == Op::kAll) return ballot(w, mask) == mask;
  if (op == Op::kMatchAll) return matches(w, mask, first) == mask ? mask : 0;
  uint64_t sum = w.lanes[first].request.value;
  for_each_lane(mask & (mask - 1),
                [&](unsigned i) { sum = combine(op, sum, w.lanes[i].request.value); });
  return sum;
}

void complete(Warp& w, Op op, unsigned mask) {
  const bool is_shuffle = op >= Op::kShuffle && op <= Op::kShuffleXor;
  const bool is_common = !is_shuffle && op != Op::kMatchAny;
  const uint64_t common = is_common ? common_result(w, op, mask) : 0;
  for_each_lane(mask, [&](unsigned i) {
    Lane& lane = w.lanes[i];
    if (is_shuffle) {
      // The value from a lane outside of the mask is undefined.
      const unsigned source = shuffle_source(lane.request, i);
      lane.result = (mask >> source & 1) != 0 ? w.lanes[source].request.value : kUndefined;
    } else {
      lane.result = is_common ? common : matches(w, mask, i);
    }
  });
  w.waiting &= ~mask;
  for_each_lane(mask, [&](unsigned i) { make_ready(w.lanes[i]); });
}

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || __builtin_strcmp(a.file, b.file) == 0);
}

void check_request(const Lane& lane, const Request& r) {
  const Warp& w = *lane.warp;
  const char* name = op_name(r.op);
  if ((r.mask >> lane.id & 1) == 0) {
    fault(r.site, "%s: the mask 0x%08x omits the caller, lane %u", name, r.mask, lane.id);
  }
  if ((r.mask & ~w.exists) != 0) {
    fault(r.site, "%s: the mask 0x%08x names lanes that the block does not have (it has 0x%08x)",
          name, r.mask, w.exists);
  }
  if ((r.mask & w.exited) != 0) {
    fault(r.site, "%s: the mask 0x%08x names lanes that have exited (0x%08x)", name, r.mask,
          r.mask & w.exited);
  }
  if (r.width <= 0 || r.width > 32 || (r.width & (r.width - 1)) != 0) {
    fault(r.site, "%s: the width %d is no power of two up to 32", name, r.width);
  }
  for_each_lane(w.waiting, [&](unsigned i) {
    const Request& other = w.lanes[i].request;
    if ((r.mask >> i & 1) == 0 && (other.mask >> lane.id & 1) == 0) return;
    if (other.op != r.op || !same_site(other.site, r.site)) {
      fault(r.site, "%s: lane %u of the same warp is at a different collective, %s at %s:%d", name,
            i, op_name(other.op), other.site.file, other.site.line);
    }
    if (other.mask != r.mask) {
      fault(r.site, "%s: the masks disagree: 0x%08x here, 0x%08x in lane %u", name, r.mask,
            other.mask, i);
    }
  });
}

void release_barrier(Block& block) {
  int64_t count = 0;
  for (const Lane& lane : block.lanes) {
    if (lane.state == State::kAtBarrier) count += static_cast<int64_t>(lane.request.value);
  }
  for (Lane& lane : block.lanes) {
    if (lane.state != State::kAtBarrier) continue;
    const Op op = lane.request.op;
    lane.result = op == Op::kBarrierAnd  ? count == block.at_barrier
                  : op == Op::kBarrierOr ? count != 0
                                         : static_cast<uint64_t>(count);
    make_ready(lane);
  }
  block.at_barrier = 0;
  block.first_at_barrier = nullptr;
}

Lane& running(Op op, Site site) {
  if (self == nullptr) fault(site, "%s outside of a kernel", op_name(op));
  return current();
}

// The thread that completes a collective must not always continue before the others.
void maybe_yield() {
  if ((next_random() & 1) != 0) yield();
}

}  // namespace

uint64_t collective(Op op, unsigned mask, uint64_t value, int argument, int width, Site site) {
  Lane& lane = running(op, site);
  preempt();
  lane.request = Request{op, mask, value, argument, width, site};
  check_request(lane, lane.request);
  Warp& w = *lane.warp;
  w.waiting |= 1u << lane.id;
  if ((w.waiting & mask) == mask) {
    complete(w, op, mask);
    maybe_yield();
  } else {
    lane.state = State::kInCollective;
    yield();
  }
  return lane.result;
}

int barrier(Op op, int predicate, Site site) {
  Lane& lane = running(op, site);
  preempt();
  Block& block = *lane.warp->block;
  if (block.at_barrier != 0) {
    const Request& other = block.first_at_barrier->request;
    if (other.op != op || !same_site(other.site, site)) {
      fault(site, "%s: other threads of the block are at a different barrier, %s at %s:%d",
            op_name(op), op_name(other.op), other.site.file, other.site.line);
    }
  } else {
    block.first_at_barrier = &lane;
  }
  lane.request = Request{op, 0, predicate != 0, 0, 32, site};
  lane.state = State::kAtBarrier;
  if (++block.at_barrier == block.alive) {
    release_barrier(block);
    maybe_yield();
  } else {
    yield();
  }
  return static_cast<int>(lane.result);
}

void lane_exits(Lane& lane) {
  Warp& w = *lane.warp;
  Block& block = *w.block;
  for_each_lane(w.waiting, [&](unsigned i) {
    const Request& r = w.lanes[i].request;
    if ((r.mask >> lane.id & 1) != 0) {
      fault(r.site, "%s: lane %u of the mask 0x%08x exits while lane %u waits for it",
            op_name(r.op), lane.id, r.mask, i);
    }
  });
  lane.state = State::kExited;
  w.exited |= 1u << lane.id;
  w.ready &= ~(1u << lane.id);
  if (--block.alive != 0 && block.at_barrier == block.alive) release_barrier(block);
}

}  // namespace simt
