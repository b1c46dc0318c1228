// Threads and memory for kernels, which include no header of torch (isa.h says why).
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace mim4dd {

// Those of torch: a user's torch.set_num_threads counts.
int64_t num_threads();

// body(context, begin, end) for parts of [0, count) that are no smaller than `grain`.
void parallel_for(
    int64_t count,
    int64_t grain,
    void (*body)(const void* context, int64_t begin, int64_t end),
    const void* context);

// task(context, worker, i) for every i in [0, count), the next one always by the worker that is
// free, of as many as there are workers or tasks.
void run_tasks(
    int64_t workers,
    int64_t count,
    void (*task)(const void* context, int64_t worker, int64_t i),
    const void* context);

// Aligned to a line of the cache.
void* allocate(size_t bytes);
void release(void* memory);

// The same for anything that can be called; each instruction set has its own (isa.h).
#if defined(MIM4DD_ISA)
namespace MIM4DD_ISA {
#endif

template <typename Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  mim4dd::parallel_for(
      count, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

template <typename Task>
void run_tasks(int64_t workers, int64_t count, const Task& task) {
  mim4dd::run_tasks(
      workers, count,
      [](const void* context, int64_t worker, int64_t i) {
        (*static_cast<const Task*>(context))(worker, i);
      },
      &task);
}

// Numbers for as long as this lives.
template <typename T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : data_(count == 0 ? nullptr : static_cast<T*>(allocate(count * sizeof(T)))) {}
  Workspace(int64_t count, T value) : Workspace(count) {
    for (int64_t i = 0; i < count; ++i) data_[i] = value;
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(data_); }

  T* data() const { return data_; }

 private:
  T* data_;
};

#if defined(MIM4DD_ISA)
}  // namespace MIM4DD_ISA
#endif

}  // namespace mim4dd
