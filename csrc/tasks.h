// Tasks that write what no other one writes, on all threads.
#pragma once

#include <algorithm>

#include "arithmetic.h"
#include "parallel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Every task(scratch, 0 … count - 1), each thread with a scratch of its own.
template <typename T, typename Task>
void run(const Task& task, int64_t scratch_size) {
  const int64_t count = task.count();
  const int64_t workers = std::min(num_threads(), count);
  const int64_t padded = round_up(scratch_size, 64 / sizeof(T));
  const Workspace<T> scratch(workers * padded);
  run_tasks(workers, count, [&](int64_t worker, int64_t i) {
    task(scratch.data() + worker * padded, i);
  });
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
