// The order of work: rows of logits in tiles, as many tiles at a time as a bounded workspace holds.
//
// Of a wave of tiles, first every tile forms its logits, its weights and its query gradient. Then,
// with the weights of all its rows at hand, every run of keys sums its own gradient. No thread adds
// to what another one writes, so that results do not depend on which thread did what.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arithmetic.h"
#include "gemm.h"
#include "parallel.h"
#include "tile_sizes.h"

namespace mim4dd {

// What a wave holds where a tile per thread is more: then tiles shrink.
constexpr int64_t kWorkspaceBytes = int64_t{96} << 20;

// Rows [begin, end) of one layer, and for each `planes` matrices of (rows, columns) in column
// tiles: within a tile, rows follow each other without a gap.
template <typename T>
struct Segment {
  int64_t layer, begin, end, columns;
  T* planes;

  int64_t rows() const { return end - begin; }
  // Rows [first, last), columns [left, right) of a plane, where the columns are those of one tile.
  Matrix<T> block(int plane, int64_t first, int64_t last, int64_t left, int64_t right) const {
    T* base = planes + (plane * columns + left) * rows() + (first - begin) * (right - left);
    return {base, last - first, right - left, right - left};
  }
};

// (rows, columns) in large pages, where the system gives them on request: the first touch of a
// small one takes as long as a quarter of what is computed in it.
template <typename T>
Tensor empty_workspace(int64_t rows, int64_t columns) {
  Tensor workspace = empty_matrix<T>(rows, columns);
#if defined(__linux__)
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr<T>());
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (begin + rows * columns * sizeof(T)) / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return workspace;
}

struct Sizes {
  int64_t threads, tile_rows, tile_columns, wave_rows;
};

inline Sizes choose_sizes(int64_t rows, int64_t columns, int64_t layers, int64_t row_bytes) {
  const int64_t threads = num_threads();
  const int64_t all_rows = round_up(rows, kRowsTogether) * layers;
  Sizes sizes{threads, tile_sizes.rows, tile_sizes.columns, 0};
  if (threads > 1) {
    // Small problems: several tiles per thread, so that threads finish together.
    sizes.tile_rows =
        std::min(sizes.tile_rows, round_up(divide_up(all_rows, 4 * threads), kRowsTogether));
    sizes.tile_columns = std::min(sizes.tile_columns, round_up(divide_up(columns, threads), 64));
  }
  const int64_t most = kWorkspaceBytes / (threads * row_bytes) / kRowsTogether * kRowsTogether;
  sizes.tile_rows = std::min(sizes.tile_rows, std::max(kRowsTogether, most));
  sizes.wave_rows = std::min(
      all_rows,
      round_up(
          std::max(threads * sizes.tile_rows, tile_sizes.wave_bytes / row_bytes), kRowsTogether));
  return sizes;
}

// row_task(segment, first row, last row) for all rows of all layers, wave by wave; after each wave
// column_task(segment, left, right) for all columns.
template <typename T, typename RowTask, typename ColumnTask>
void run_waves(
    int64_t rows,
    int64_t columns,
    const std::vector<int64_t>& layers,
    int planes,
    const RowTask& row_task,
    const ColumnTask& column_task) {
  struct Task {
    size_t segment;
    int64_t begin, end;
  };
  const int64_t row_bytes = planes * columns * static_cast<int64_t>(sizeof(T));
  const Sizes sizes = choose_sizes(rows, columns, layers.size(), row_bytes);
  const Tensor workspace = empty_workspace<T>(sizes.wave_rows, planes * columns);
  T* const base = workspace.mutable_data_ptr<T>();

  size_t layer = 0;
  int64_t row = 0;
  while (layer < layers.size()) {
    std::vector<Segment<T>> segments;
    std::vector<Task> row_tasks, column_tasks;
    int64_t used = 0;
    while (layer < layers.size() && used < sizes.wave_rows) {
      const int64_t end = std::min(rows, row + sizes.wave_rows - used);
      segments.push_back({layers[layer], row, end, columns, base + used * planes * columns});
      for (int64_t tile = row; tile < end; tile += sizes.tile_rows) {
        row_tasks.push_back({segments.size() - 1, tile, std::min(end, tile + sizes.tile_rows)});
      }
      for (int64_t left = 0; left < columns; left += sizes.tile_columns) {
        column_tasks.push_back(
            {segments.size() - 1, left, std::min(columns, left + sizes.tile_columns)});
      }
      used += round_up(end - row, kRowsTogether);
      row = end < rows ? end : 0;
      if (row == 0) ++layer;
    }
    run_tasks(sizes.threads, static_cast<int64_t>(row_tasks.size()), [&](int64_t, int64_t i) {
      const Task& task = row_tasks[i];
      row_task(segments[task.segment], task.begin, task.end, sizes.tile_columns);
    });
    run_tasks(sizes.threads, static_cast<int64_t>(column_tasks.size()), [&](int64_t, int64_t i) {
      const Task& task = column_tasks[i];
      column_task(segments[task.segment], task.begin, task.end);
    });
  }
}

}  // namespace mim4dd
