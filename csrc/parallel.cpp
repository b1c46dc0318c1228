#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#endif

namespace mim4dd {

// A point that threads pass in order. OpenMP's own library is built without ThreadSanitizer, which
// would not see the threads wait for each other there, and call every sharing of memory a race.
struct Order {
#if defined(__SANITIZE_THREAD__)
  void before() { __tsan_release(this); }
  void after() { __tsan_acquire(this); }
#else
  void before() {}
  void after() {}
#endif
};

#if defined(__SANITIZE_THREAD__)
#define UNSEEN __attribute__((no_sanitize("thread")))
#else
#define UNSEEN
#endif

int64_t num_threads() { return torch::stable::get_num_threads(); }

void parallel_for(
    int64_t count,
    int64_t grain,
    void (*body)(const void* context, int64_t begin, int64_t end),
    const void* context) {
  Order start, finish;
  // What it refers to it reads before the threads are in order.
  const auto part = [&](int64_t begin, int64_t end) UNSEEN {
    start.after();
    body(context, begin, end);
    finish.before();
  };
  start.before();
  torch::stable::parallel_for(0, count, grain, part);
  finish.after();
}

void run_tasks(
    int64_t workers,
    int64_t count,
    void (*task)(const void* context, int64_t worker, int64_t i),
    const void* context) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(workers, count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next++; i < count; i = next++) task(context, worker, i);
    }
  });
}

constexpr std::align_val_t kLine{64};

void* allocate(size_t bytes) { return ::operator new(bytes, kLine); }
void release(void* memory) { ::operator delete(memory, kLine); }

}  // namespace mim4dd
