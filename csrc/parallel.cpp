#include "parallel.h"

#include <torch/csrc/stable/ops.h>

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

constexpr std::align_val_t kLine{64};

void* allocate(size_t bytes) { return ::operator new(bytes, kLine); }
void release(void* memory) { ::operator delete(memory, kLine); }

}  // namespace mim4dd
