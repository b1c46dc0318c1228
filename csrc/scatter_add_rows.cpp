#include "scatter_add_rows.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "parallel.h"
#include "scatter_add_row.h"

namespace mim4dd {
namespace {

// Below this many sums a thread's share is done before another thread has woken up.
constexpr int64_t kGrain = 1 << 15;
// Threads that write to one line of the cache wait for each other.
constexpr int64_t kMinColumns = 256;

struct ByColumns {
  template <typename T>
  static void run(
      T* out,
      int64_t num_rows,
      const int64_t* rows,
      const T* source,
      int64_t batch,
      int64_t width,
      Arithmetic<T> scale,
      const Tensor&) {
    for (int64_t b = 0; b < batch; ++b) {
      STD_TORCH_CHECK(
          rows[b] >= 0 && rows[b] < num_rows, "scatter_add_rows: rows must index the ", num_rows,
          " rows of out, got ", rows[b]);
    }
    const int64_t grain = std::max(kMinColumns, kGrain / batch);
    parallel_for(width, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < batch; ++b) {
        kernels<AddRow<T>>().run(
            out + rows[b] * width + begin, source + b * width + begin, end - begin, scale);
      }
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("scatter_add_rows", TORCH_BOX(&scatter_add_rows<ByColumns>));
}

}  // namespace mim4dd
