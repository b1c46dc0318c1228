// Tasks that write what no other one writes, on all threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "arithmetic.h"
#include "parallel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Every task(scratch, 0 … count - 1), the next one always by the thread that is free.
template <typename T, typename Task>
void run(const Task& task, int64_t scratch_size) {
  const int64_t count = task.count();
  const int64_t threads = std::min<int64_t>(num_threads(), count);
  const int64_t padded = round_up(scratch_size, 64 / sizeof(T));
  const Workspace<T> scratch(threads * padded);
  std::atomic<int64_t> next{0};
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t i = next++; i < count; i = next++) task(scratch.data() + worker * padded, i);
    }
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
