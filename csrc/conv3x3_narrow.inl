// 3×3 convolutions of few channels, which are last: the tasks and their sizes.
#include <algorithm>

#include "conv3x3_narrow.h"
#include "conv3x3_narrow_patches.h"
#include "conv3x3_narrow_task.h"
#include "tasks.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

// What a task may hold of products, of three rows of pixels: they stay in a second cache.
constexpr int64_t kProductBytes = int64_t{64} << 10;

// Of images, whose gradients of the filters are summed apart: also the most threads that sum.
constexpr int64_t kChunks = 32;

// Filters to (panels, depth, kColumns), where a column is a tap and a channel; zeros elsewhere.
template <typename T>
void pack(const Filters<T>& from, T* to) {
  constexpr int kColumns = Micro<T>::kColumns;
  const int64_t depth = NarrowGradient<T>::depth_of(from.out_channels);
  for (int64_t column = 0; column < kTaps * from.in_channels; ++column) {
    const T* const source = from.at(0, column / from.in_channels, column % from.in_channels);
    T* const target = to + column / kColumns * depth * kColumns + column % kColumns;
    for (int64_t out = 0; out < from.out_channels; ++out) {
      target[out * kColumns] = source[out * from.out_stride];
    }
  }
}

// Into how many tiles rows are cut so that all threads are done soonest: a cut costs two rows.
inline int64_t choose_row_tiles(int64_t images, int64_t rows, int64_t threads) {
  int64_t best = 1, least = divide_up(images, threads) * rows;
  for (int64_t tiles = 2; tiles <= std::min(rows, 2 * threads); ++tiles) {
    const int64_t time = divide_up(images * tiles, threads) * (divide_up(rows, tiles) + 2);
    if (time < least) {
      best = tiles;
      least = time;
    }
  }
  return best;
}

// How many columns a tile has: with one more on each side they are whole panels of kRows pixels.
template <typename T>
int64_t choose_columns(int64_t width, int64_t channels) {
  constexpr int64_t kRows = Micro<T>::kRows;
  const int64_t pixel_bytes = 3 * kTaps * channels * static_cast<int64_t>(sizeof(T));
  const int64_t panels = std::max<int64_t>(2, kProductBytes / pixel_bytes / kRows);
  return std::min(width, panels * kRows - 2);
}

template <typename T>
void narrow_gradient(
    const Grid& grid,
    const T* grad_output,
    const Filters<T>& filters,
    T* grad_input) {
  using Task = NarrowGradient<T>;
  const int64_t panels = Task::panels_of(filters.in_channels);
  const Workspace<T> packed(
      panels * Task::depth_of(filters.out_channels) * Micro<T>::kColumns, T(0));
  pack(filters, packed.data());
  const int64_t columns = choose_columns<T>(grid.width, filters.in_channels);
  const int64_t row_tiles =
      choose_row_tiles(grid.batch * divide_up(grid.width, columns), grid.height, num_threads());
  const Task task{grid.batch, grid.height, grid.width,  filters.in_channels, filters.out_channels,
                  row_tiles,  columns,     grad_output, packed.data(),       grad_input};
  run<T>(task, task.scratch());
}

// Filters to (panels, depth, kColumns), where a column is an output channel; zeros elsewhere.
template <typename T>
void pack_patches(const Filters<T>& from, T* to) {
  constexpr int kColumns = Micro<T>::kColumns;
  const int64_t depth = NarrowForward<T>::depth_of(from.in_channels);
  for (int64_t out = 0; out < from.out_channels; ++out) {
    T* const target = to + out / kColumns * depth * kColumns + out % kColumns;
    for (int64_t place = 0; place < kTaps * from.in_channels; ++place) {
      target[place * kColumns] = *from.at(out, place / from.in_channels, place % from.in_channels);
    }
  }
}

template <typename T>
void narrow_convolve(
    const Grid& grid,
    const T* input,
    const Filters<T>& filters,
    const T* bias,
    T* output) {
  using Task = NarrowForward<T>;
  const int64_t columns = Task::panels_of(filters.out_channels) * Micro<T>::kColumns;
  const Workspace<T> packed(columns * Task::depth_of(filters.in_channels), T(0));
  const Workspace<T> shifts(columns, T(0));
  pack_patches(filters, packed.data());
  if (bias != nullptr) std::copy(bias, bias + filters.out_channels, shifts.data());
  const int64_t row_tiles = choose_row_tiles(grid.batch, grid.height, num_threads());
  const Task task{grid.batch, grid.height, grid.width,    filters.in_channels, filters.out_channels,
                  row_tiles,  input,       packed.data(), shifts.data(),       output};
  run<T>(task, task.scratch());
}

template <typename T>
void narrow_filter_gradient(
    const Grid& grid,
    const T* grad_output,
    int64_t out_channels,
    const T* input,
    int64_t in_channels,
    T* gradient) {
  using Task = NarrowFilterGradient<T>;
  const int64_t chunks = std::min(grid.batch, kChunks);
  const int64_t size = Task::sums_size(in_channels, out_channels);
  const Workspace<T> sums(chunks * size);
  const Task task{grid.batch, grid.height, grid.width,  in_channels, out_channels,
                  chunks,     input,       grad_output, sums.data()};
  run<T>(task, task.scratch());
  const int64_t places = kTaps * in_channels, padded = round_up(places, Task::kRows);
  for (int64_t out = 0; out < out_channels; ++out) {
    for (int64_t place = 0; place < places; ++place) {
      const T* from = sums.data() + (out / Task::kColumns * padded + place) * Task::kColumns +
                      out % Task::kColumns;
      T sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk, from += size) sum += *from;
      gradient[out * places + place] = sum;
    }
  }
}

template <typename T>
constexpr Conv3x3Narrow<T> kConv3x3Narrow{
    narrow_convolve<T>, narrow_filter_gradient<T>, narrow_gradient<T>};

}  // namespace

MIM4DD_TABLE(Conv3x3Narrow, float)
MIM4DD_TABLE(Conv3x3Narrow, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
