#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>

namespace mim4dd {

int64_t num_threads() { return torch::stable::get_num_threads(); }

void parallel_for(
    int64_t count,
    int64_t grain,
    void (*body)(const void* context, int64_t begin, int64_t end),
    const void* context) {
  torch::stable::parallel_for(
      0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
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
