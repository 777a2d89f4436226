#include "shim.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "fiber.h"

namespace shim {
namespace {

std::deque<Kernel>& kernels() {
  static std::deque<Kernel> all;
  return all;
}

class Group;

struct Lane {
  Lane(void (*entry)(void*), Group& owner) : fiber(entry, this), group(&owner) {}
  Fiber fiber;
  Group* group;
  Ids ids;
  bool done = true;
  uint32_t meetings = 0, barriers = 0, shared = 0;  // that it has passed
  // What it waits for: *word to differ from `old`; null: nothing.
  const uint32_t* word = nullptr;
  uint32_t old = 0;
  const char* waits_at = "";
  bool can_run() const { return !done && (!word || *word != old); }
};

// Values are kept for two meetings: the first lane to go on may reach the next one before the last has read.
struct Simd {
  Slot values[2][kSimdLanes];
  uint32_t active[2] = {};
  uint32_t meeting = 0, arrived = 0, live = 0;
  const char* operation = nullptr;
};

struct Shared {
  size_t bytes;
  std::unique_ptr<char[]> data;
};

// The thread-group that a thread of the host works on.
class Group {
 public:
  void run(const Kernel& kernel, const Binding* buffers, const Ids& first, uint32_t threads, Order order);
  Meeting meet(const void* value, size_t bytes, const char* operation);
  void barrier();
  void* shared(size_t bytes);
  Lane& lane() const { return *current_; }

 private:
  static void enter(void* lane);
  void complete(Simd& simd) { simd.arrived = 0, simd.meeting++; }
  void wait(const uint32_t& word, uint32_t old, const char* at);
  void leave();
  Lane* next_in(uint32_t first, uint32_t count, uint32_t from);
  Lane* next();
  [[noreturn]] void stuck();

  std::vector<std::unique_ptr<Lane>> lanes_;
  std::vector<Simd> simds_;
  std::vector<Shared> shared_;
  size_t shared_bytes_ = 0;
  Fiber host_;
  Lane* current_ = nullptr;
  const Kernel* kernel_ = nullptr;
  const Binding* buffers_ = nullptr;
  Order order_ = Order::ascending;
  uint32_t threads_ = 0, left_ = 0, barrier_ = 0, at_barrier_ = 0;
};

thread_local Group* running = nullptr;

Group& group() {
  if (!running) fail("a simd operation or barrier outside a kernel");
  return *running;
}

void Group::enter(void* context) {
  Lane& lane = *static_cast<Lane*>(context);
  for (;;) {
    Group& g = *lane.group;
    g.kernel_->invoke(g.kernel_->function, g.buffers_, lane.ids);
    g.leave();
  }
}

void Group::run(const Kernel& kernel, const Binding* buffers, const Ids& first, uint32_t threads, Order order) {
  while (lanes_.size() < threads) lanes_.push_back(std::make_unique<Lane>(&Group::enter, *this));
  kernel_ = &kernel, buffers_ = buffers, order_ = order, threads_ = left_ = threads, barrier_ = at_barrier_ = 0;
  shared_.clear(), shared_bytes_ = 0;
  simds_.assign((threads + kSimdLanes - 1) / kSimdLanes, Simd{});
  for (uint32_t i = 0; i < threads; i++) {
    Lane& l = *lanes_[i];
    l.ids = first, l.ids.tid = i, l.ids.lane = i % kSimdLanes, l.ids.sg = i / kSimdLanes;
    l.done = false, l.meetings = l.barriers = l.shared = 0, l.word = nullptr;
    simds_[l.ids.sg].live++;
  }
  running = this;
  current_ = next_in(0, threads, order == Order::ascending ? threads - 1 : 0);
  host_.switch_to(current_->fiber);
  running = nullptr;
}

// Of the lanes [first, first + count) the next that can run after `from`, in this group's order.
Lane* Group::next_in(uint32_t first, uint32_t count, uint32_t from) {
  uint32_t at = from - first;
  for (uint32_t i = 0; i < count; i++) {
    at = order_ == Order::ascending ? (at + 1 == count ? 0 : at + 1) : (at == 0 ? count - 1 : at - 1);
    if (Lane* lane = lanes_[first + at].get(); lane->can_run()) return lane;
  }
  return nullptr;
}

// A simdgroup goes on while it can: that lets it come as far ahead of others as barriers allow.
Lane* Group::next() {
  const uint32_t me = current_->ids.tid, first = me / kSimdLanes * kSimdLanes;
  const uint32_t count = first + kSimdLanes < threads_ ? kSimdLanes : threads_ - first;
  Lane* lane = next_in(first, count, me);
  return lane ? lane : next_in(0, threads_, me);
}

void Group::wait(const uint32_t& word, uint32_t old, const char* at) {
  Lane& me = *current_;
  me.word = &word, me.old = old, me.waits_at = at;
  Lane* lane = next();
  if (!lane) stuck();
  if (lane != &me) {
    current_ = lane;
    me.fiber.switch_to(lane->fiber);
  }
  me.word = nullptr;
}

void Group::leave() {
  Lane& me = *current_;
  me.done = true;
  left_--;
  Simd& simd = simds_[me.ids.sg];
  simd.live--;
  if (simd.live > 0 && simd.arrived == simd.live) complete(simd);
  if (left_ == 0) return me.fiber.switch_to(host_);
  Lane* lane = next();
  if (!lane) stuck();
  current_ = lane;
  me.fiber.switch_to(lane->fiber);
}

void Group::stuck() {
  for (uint32_t i = 0; i < threads_; i++)
    if (const Lane& l = *lanes_[i]; !l.done) std::fprintf(stderr, "  thread %u waits at %s\n", i, l.waits_at);
  fail("%u of %u threads wait for others that do not come", left_, threads_);
}

Meeting Group::meet(const void* value, size_t bytes, const char* operation) {
  Lane& me = *current_;
  Simd& simd = simds_[me.ids.sg];
  const uint32_t parity = me.meetings & 1;
  if (bytes > sizeof(Slot)) fail("%s of %zu bytes", operation, bytes);
  if (simd.arrived == 0) simd.operation = operation, simd.active[parity] = 0;
  if (simd.operation != operation && std::string_view(simd.operation) != operation)  // mostly one string: its address decides
    fail("lanes of a simdgroup are at different operations: %s and %s", simd.operation, operation);
  std::memcpy(simd.values[parity][me.ids.lane], value, bytes);
  simd.active[parity] |= 1u << me.ids.lane;
  const uint32_t meeting = simd.meeting;
  if (++simd.arrived == simd.live)
    complete(simd);
  else
    wait(simd.meeting, meeting, operation);
  me.meetings++;
  return {simd.values[parity], simd.active[parity]};
}

void Group::barrier() {
  const uint32_t before = barrier_;
  if (++at_barrier_ == threads_)
    at_barrier_ = 0, barrier_++;
  else
    wait(barrier_, before, "threadgroup_barrier");
}

void* Group::shared(size_t bytes) {
  const uint32_t i = current_->shared++;
  if (i < shared_.size()) {
    if (shared_[i].bytes != bytes) fail("threads ask for %zu and %zu bytes of the same threadgroup memory", shared_[i].bytes, bytes);
    return shared_[i].data.get();
  }
  shared_bytes_ += (bytes + 15) / 16 * 16;
  if (shared_bytes_ > kMaxSharedBytes) fail("%zu bytes of threadgroup memory, of %zu", shared_bytes_, kMaxSharedBytes);
  shared_.push_back({bytes, std::unique_ptr<char[]>(new char[bytes])});
  std::memset(shared_.back().data.get(), 0xFF, bytes);  // NaN
  return shared_.back().data.get();
}

Group& this_threads_group() {
  thread_local Group group;
  return group;
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fputs("shim: ", stderr);
  std::vfprintf(stderr, format, arguments);
  std::fputs("\n", stderr);
  va_end(arguments);
  std::abort();
}

void add(const Kernel& kernel) {
  if (find(kernel.name)) fail("two kernels are named %s", kernel.name);
  kernels().push_back(kernel);
}
const Kernel* find(std::string_view name) {
  for (const Kernel& k : kernels())
    if (name == k.name) return &k;
  return nullptr;
}
int kernel_count() { return int(kernels().size()); }
const Kernel& kernel_at(int i) { return kernels()[size_t(i)]; }

Meeting meet(const void* value, size_t bytes, const char* operation) { return group().meet(value, bytes, operation); }
void group_barrier() { group().barrier(); }
uint32_t this_lane() { return group().lane().ids.lane; }
void* shared_memory(size_t bytes) { return group().shared(bytes); }

void dispatch(const Kernel& kernel, const Binding* buffers, int n_buffers, Size3 groups, uint32_t group_threads, const Options& options) {
  if (n_buffers < kernel.n_buffers) fail("%s: %d buffers of %d are bound", kernel.name, n_buffers, kernel.n_buffers);
  for (int i = 0; i < kernel.n_buffers; i++)
    if (!buffers[i].data) fail("%s: buffer %d is not bound", kernel.name, i);
  if (group_threads == 0 || group_threads > kMaxGroupThreads || group_threads % kSimdLanes != 0)
    fail("%s: %u threads a group", kernel.name, group_threads);
  const uint64_t total = uint64_t(groups.x) * groups.y * groups.z;
  if (total == 0) fail("%s: an empty grid", kernel.name);
  std::atomic<uint64_t> taken{0};
  const auto work = [&] {
    for (uint64_t i = taken++; i < total; i = taken++) {
      const uint64_t at = options.order == Order::ascending ? i : total - 1 - i;
      Ids ids;
      ids.groups = groups, ids.size = {group_threads, 1, 1};
      ids.group = {uint32_t(at % groups.x), uint32_t(at / groups.x % groups.y), uint32_t(at / groups.x / groups.y)};
      this_threads_group().run(kernel, buffers, ids, group_threads, options.order);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < options.os_threads && uint64_t(i) < total; i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
}

}  // namespace shim
