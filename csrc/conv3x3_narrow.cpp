// The gradient to the input of a 3×3 convolution of few channels, which are last.
#include "conv3x3_narrow.h"

#include <torch/csrc/stable/library.h>

#include "channels_last.h"
#include "dispatch.h"

namespace mim4dd {
namespace {

// What a task may hold of products, of three rows of pixels: they stay in a second cache.
constexpr int64_t kProductBytes = int64_t{64} << 10;

// Filters as (panels, depth, kColumns), where a column is a tap and a channel.
template <typename T, typename Isa>
Tensor pack(const Tensor& weight) {
  using Task = NarrowGradient<T, Isa>;
  constexpr int kColumns = Task::Kernel::kColumns;
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  const int64_t depth = Task::depth_of(out_channels);
  const Tensor packed = empty_matrix<T>(Task::panels_of(in_channels) * depth, kColumns);
  T* const to = packed.mutable_data_ptr<T>();
  std::fill(to, to + packed.numel(), T(0));
  const T* const from = weight.const_data_ptr<T>();
  for (int64_t column = 0; column < kTaps * in_channels; ++column) {
    const int64_t tap = column / in_channels, channel = column % in_channels;
    const T* const source =
        from + channel * weight.stride(1) + tap / 3 * weight.stride(2) + tap % 3 * weight.stride(3);
    T* const target = to + column / kColumns * depth * kColumns + column % kColumns;
    for (int64_t out = 0; out < out_channels; ++out) {
      target[out * kColumns] = source[out * weight.stride(0)];
    }
  }
  return packed;
}

// Into how many tiles rows are cut so that all threads are done soonest: a cut costs two rows.
int64_t choose_row_tiles(int64_t images, int64_t rows, int64_t threads) {
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
template <typename T, typename Isa>
int64_t choose_columns(int64_t width, int64_t channels) {
  using Kernel = Micro<T, Isa>;
  const int64_t pixel_bytes = 3 * kTaps * channels * static_cast<int64_t>(sizeof(T));
  const int64_t panels = std::max<int64_t>(2, kProductBytes / pixel_bytes / Kernel::kRows);
  return std::min(width, panels * Kernel::kRows - 2);
}

template <typename T, typename Isa>
void gradient_on(const Tensor& grad_input, const Tensor& grad_output, const Tensor& weight) {
  using Task = NarrowGradient<T, Isa>;
  const Tensor packed = pack<T, Isa>(weight);
  const int64_t batch = grad_input.size(0), channels = grad_input.size(1);
  const int64_t height = grad_input.size(2), width = grad_input.size(3);
  const int64_t columns = choose_columns<T, Isa>(width, channels);
  const int64_t row_tiles =
      choose_row_tiles(batch * divide_up(width, columns), height, torch::stable::get_num_threads());
  const Task task{
      batch,
      height,
      width,
      channels,
      grad_output.size(1),
      row_tiles,
      columns,
      grad_output.const_data_ptr<T>(),
      packed.const_data_ptr<T>(),
      grad_input.mutable_data_ptr<T>()};
  run<T, Isa>(task, task.scratch());
}

// What memory safety needs: callers of the bare operator come by no other check.
void check(const Tensor& grad_output, const Tensor& weight) {
  STD_TORCH_CHECK(
      grad_output.dim() == 4 && weight.dim() == 4 && weight.size(0) == grad_output.size(1) &&
          weight.size(2) == 3 && weight.size(3) == 3,
      "conv3x3_narrow_bwd: grad_out must be (B, O, H, W) and weight (O, C, 3, 3)");
  STD_TORCH_CHECK(
      weight.size(0) > 0 && weight.size(1) > 0,
      "conv3x3_narrow_bwd: weight must have at least one channel");
  STD_TORCH_CHECK(
      grad_output.scalar_type() == weight.scalar_type(),
      "conv3x3_narrow_bwd: grad_out and weight must share a dtype");
  STD_TORCH_CHECK(
      grad_output.device() == weight.device(),
      "conv3x3_narrow_bwd: grad_out and weight must share a device");
}

}  // namespace

Tensor conv3x3_narrow_bwd_cpu(const Tensor& grad_output, const Tensor& weight) {
  check(grad_output, weight);
  Tensor grad_input = empty_channels_last(
      grad_output, grad_output.size(0), weight.size(1), grad_output.size(2), grad_output.size(3));
  MIM4DD_DISPATCH_FLOATING(grad_output.scalar_type(), "conv3x3_narrow_bwd", [&] {
    if (grad_input.numel() == 0) return;
    const Tensor upstream = channels_last(grad_output);
    with_isa([&](auto isa) { gradient_on<scalar_t, decltype(isa)>(grad_input, upstream, weight); });
  });
  return grad_input;
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("conv3x3_narrow_bwd", TORCH_BOX(&conv3x3_narrow_bwd_cpu));
}

}  // namespace mim4dd
