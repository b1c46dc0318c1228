// 3×3 convolutions by Winograd's algorithm: the tasks and their sizes.
#include <algorithm>

#include "conv3x3.h"
#include "conv3x3_filters.h"
#include "conv3x3_tasks.h"
#include "tasks.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

// What a task may hold of transformed tiles: they stay in a second cache beside the filters.
constexpr int64_t kTaskBytes = int64_t{256} << 10;
constexpr int64_t kTasksPerThread = 4;

template <typename T>
void convolve(
    const Grid& grid,
    const Source<T>* sources,
    int64_t num_sources,
    const T* bias,
    T* output) {
  const int64_t in_channels = sources[0].filters.in_channels;
  const Layout<T> layout{num_sources, in_channels, sources[0].filters.out_channels};
  const Workspace<T> zeros(in_channels, T(0));
  const Workspace<T> packed(layout.out_panels() * layout.out_panel());
  TransformFilters<T> filters{layout, {}, packed.data()};
  Convolve<T> convolve{
      layout, {}, packed.data(), bias, {grid, layout.out_channels, output, nullptr}, 1};
  for (int64_t i = 0; i < num_sources; ++i) {
    filters.filters[i] = sources[i].filters;
    convolve.inputs[i] = {grid, in_channels, sources[i].input, zeros.data()};
  }
  const int64_t panel_bytes = layout.tile_panel() * static_cast<int64_t>(sizeof(T));
  const int64_t fair = divide_up(convolve.count(), kTasksPerThread * num_threads());
  convolve.panels = std::max<int64_t>(1, std::min(fair, kTaskBytes / panel_bytes));
  run<T>(filters, 0);
  run<T>(convolve, convolve.scratch());
}

template <typename T>
void filter_gradient(
    const Grid& grid,
    const T* grad_output,
    int64_t out_channels,
    const T* input,
    int64_t in_channels,
    T* gradient) {
  const Workspace<T> zeros(std::max(in_channels, out_channels), T(0));
  FilterGradient<T> sums{
      {grid, out_channels, grad_output, zeros.data()},
      {grid, in_channels, input, zeros.data()},
      nullptr,
      1,
      1};
  const int64_t tile_bytes = sums.tile_size() * static_cast<int64_t>(sizeof(T));
  sums.block = round_up(std::max<int64_t>(1, kTaskBytes / tile_bytes), Micro<T>::kSteps);
  // A chunk makes four tasks, and a gradient of its own that is to be added up.
  sums.chunks = std::min(divide_up(num_threads(), 2), divide_up(grid.tiles(), sums.block));
  const Workspace<T> sum(sums.chunks * kPoints * sums.point_size());
  sums.gradient = sum.data();
  run<T>(sums, sums.scratch());
  run<T>(WriteFilterGradient<T>{sums, gradient}, 0);
}

template <typename T>
constexpr Conv3x3<T> kConv3x3{convolve<T>, filter_gradient<T>};

}  // namespace

MIM4DD_TABLE(Conv3x3, float)
MIM4DD_TABLE(Conv3x3, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
