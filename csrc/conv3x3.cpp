// 3×3 convolutions of images whose channels are last, by Winograd's algorithm.
#include "conv3x3.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "channels_last.h"
#include "conv3x3_filters.h"
#include "dispatch.h"

namespace mim4dd {
namespace {

// What a task may hold of transformed tiles: they stay in a second cache beside the filters.
constexpr int64_t kTaskBytes = int64_t{256} << 10;
constexpr int64_t kTasksPerThread = 4;

template <typename T>
Filters<T> filters_of(const Tensor& weight) {
  return {weight.const_data_ptr<T>(), weight.size(0),   weight.size(1),  weight.stride(0),
          weight.stride(1),           weight.stride(2), weight.stride(3)};
}

// Σ input * filters + bias.
template <typename T>
struct Source {
  Tensor input;  // channels last
  Filters<T> filters;
};

Grid grid_of(const Tensor& images) { return {images.size(0), images.size(2), images.size(3)}; }

template <typename T, typename Isa>
void convolve_on(const Tensor& output, const std::vector<Source<T>>& sources, const T* bias) {
  const int64_t in_channels = sources[0].filters.in_channels;
  const Layout<T, Isa> layout{
      static_cast<int64_t>(sources.size()), in_channels, sources[0].filters.out_channels};
  std::vector<T> zeros(in_channels);
  const Tensor packed = empty_matrix<T>(layout.out_panels(), layout.out_panel());
  TransformFilters<T, Isa> filters{layout, {}, packed.mutable_data_ptr<T>()};
  Convolve<T, Isa> convolve{
      layout,
      {},
      packed.const_data_ptr<T>(),
      bias,
      {grid_of(output), layout.out_channels, output.mutable_data_ptr<T>(), nullptr},
      1};
  for (size_t i = 0; i < sources.size(); ++i) {
    filters.filters[i] = sources[i].filters;
    convolve.inputs[i] = {
        grid_of(output), in_channels, sources[i].input.template const_data_ptr<T>(), zeros.data()};
  }
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t panel_bytes = layout.tile_panel() * static_cast<int64_t>(sizeof(T));
  const int64_t fair = divide_up(convolve.count(), kTasksPerThread * threads);
  convolve.panels = std::max<int64_t>(1, std::min(fair, kTaskBytes / panel_bytes));
  run<T, Isa>(filters, 0);
  run<T, Isa>(convolve, convolve.scratch());
}

template <typename T>
Tensor convolve(const std::vector<Source<T>>& sources, const T* bias) {
  const Tensor& input = sources[0].input;
  Tensor output = empty_channels_last(
      input, input.size(0), sources[0].filters.out_channels, input.size(2), input.size(3));
  if (output.numel() == 0) return output;
  with_isa([&](auto isa) { convolve_on<T, decltype(isa)>(output, sources, bias); });
  return output;
}

template <typename T>
Tensor convolve_adjoint(const Tensor& grad_output, const Tensor& weight) {
  return convolve<T>({{grad_output, filters_of<T>(weight).adjoint()}}, nullptr);
}

template <typename T, typename Isa>
void filter_gradient_on(const Tensor& gradient, const Tensor& grad_output, const Tensor& input) {
  const int64_t in_channels = input.size(1), out_channels = grad_output.size(1);
  std::vector<T> zeros(std::max(in_channels, out_channels));
  const Grid grid = grid_of(input);
  FilterGradient<T, Isa> sums{
      {grid, out_channels, grad_output.const_data_ptr<T>(), zeros.data()},
      {grid, in_channels, input.const_data_ptr<T>(), zeros.data()},
      nullptr,
      1,
      1};
  const int64_t tile_bytes = sums.tile_size() * static_cast<int64_t>(sizeof(T));
  sums.block = round_up(std::max<int64_t>(1, kTaskBytes / tile_bytes), Micro<T, Isa>::kSteps);
  // A chunk makes four tasks, and a gradient of its own that is to be added up.
  const int64_t threads = torch::stable::get_num_threads();
  sums.chunks = std::min(divide_up(threads, 2), divide_up(grid.tiles(), sums.block));
  const Tensor sum = empty_matrix<T>(sums.chunks * kPoints, sums.point_size());
  sums.gradient = sum.mutable_data_ptr<T>();
  run<T, Isa>(sums, sums.scratch());
  run<T, Isa>(WriteFilterGradient<T, Isa>{sums, gradient.mutable_data_ptr<T>()}, 0);
}

template <typename T>
Tensor filter_gradient(const Tensor& grad_output, const Tensor& input) {
  Tensor gradient = empty_channels_last(input, grad_output.size(1), input.size(1), 3, 3);
  if (input.numel() == 0) return torch::stable::zero_(gradient);
  with_isa([&](auto isa) { filter_gradient_on<T, decltype(isa)>(gradient, grad_output, input); });
  return gradient;
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

// What memory safety needs: callers of the bare operators come by no other check.
void check_dtype(const Tensor& tensor, const Tensor& input) {
  STD_TORCH_CHECK(
      tensor.scalar_type() == input.scalar_type(), "conv3x3: all tensors must share a dtype");
  STD_TORCH_CHECK(tensor.device() == input.device(), "conv3x3: all tensors must share a device");
}

void check_images(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(
      input.dim() == 4 && weight.dim() == 4 && weight.size(1) == input.size(1) &&
          weight.size(2) == 3 && weight.size(3) == 3,
      "conv3x3: input must be (B, C, H, W) and weight (O, C, 3, 3)");
  STD_TORCH_CHECK(
      weight.size(0) > 0 && weight.size(1) > 0, "conv3x3: weight must have at least one channel");
  check_dtype(weight, input);
}

void check_upstream(const Tensor& grad_output, const Tensor& input, const Tensor& weight) {
  check_images(input, weight);
  STD_TORCH_CHECK(
      grad_output.dim() == 4 && grad_output.size(0) == input.size(0) &&
          grad_output.size(1) == weight.size(0) && grad_output.size(2) == input.size(2) &&
          grad_output.size(3) == input.size(3),
      "conv3x3: grad_out must be (B, O, H, W), the shape of the output");
  check_dtype(grad_output, input);
}

void check_cotangent(const std::optional<Tensor>& cotangent, const Tensor& of, bool needed) {
  STD_TORCH_CHECK(cotangent || !needed, "conv3x3_bwd_bwd: mask asks for what no cotangent gives");
  if (!cotangent) return;
  STD_TORCH_CHECK(
      same_sizes(*cotangent, of), "conv3x3_bwd_bwd: a cotangent must have the shape of its tensor");
  check_dtype(*cotangent, of);
}

void check_mask(const std::vector<bool>& mask, size_t flags) {
  STD_TORCH_CHECK(mask.size() == flags, "conv3x3: mask must be ", flags, " flags");
}

}  // namespace

Tensor conv3x3_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_images(input, weight);
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == weight.size(0), "conv3x3: bias must be (O,)");
    check_dtype(*bias, input);
  }
  Tensor output;
  MIM4DD_DISPATCH_FLOATING(input.scalar_type(), "conv3x3", [&] {
    const Tensor offset = bias ? torch::stable::contiguous(*bias) : Tensor();
    output = convolve<scalar_t>(
        {{channels_last(input), filters_of<scalar_t>(weight)}},
        bias ? offset.const_data_ptr<scalar_t>() : nullptr);
  });
  return output;
}

std::tuple<Tensor, Tensor> conv3x3_bwd_cpu(
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& weight,
    std::vector<bool> mask) {
  check_upstream(grad_output, input, weight);
  check_mask(mask, 2);
  Tensor grad_input, grad_weight;  // without a value: None
  MIM4DD_DISPATCH_FLOATING(input.scalar_type(), "conv3x3_bwd", [&] {
    const Tensor upstream = channels_last(grad_output);
    if (mask[0]) grad_input = convolve_adjoint<scalar_t>(upstream, weight);
    if (mask[1]) grad_weight = filter_gradient<scalar_t>(upstream, channels_last(input));
  });
  return {grad_input, grad_weight};
}

std::tuple<Tensor, Tensor, Tensor> conv3x3_bwd_bwd_cpu(
    const std::optional<Tensor>& cotangent_input,
    const std::optional<Tensor>& cotangent_weight,
    const Tensor& grad_output,
    const Tensor& input,
    const Tensor& weight,
    std::vector<bool> mask) {
  check_upstream(grad_output, input, weight);
  check_mask(mask, 3);
  check_cotangent(cotangent_input, input, mask[2] || (mask[0] && !cotangent_weight));
  check_cotangent(cotangent_weight, weight, mask[1]);
  Tensor grad_grad_output, grad_input, grad_weight;
  MIM4DD_DISPATCH_FLOATING(input.scalar_type(), "conv3x3_bwd_bwd", [&] {
    std::vector<Source<scalar_t>> sources;
    if (cotangent_input) {
      sources.push_back({channels_last(*cotangent_input), filters_of<scalar_t>(weight)});
    }
    if (mask[0] && cotangent_weight) {
      sources.push_back({channels_last(input), filters_of<scalar_t>(*cotangent_weight)});
    }
    const Tensor upstream = channels_last(grad_output);
    if (mask[0]) grad_grad_output = convolve<scalar_t>(sources, nullptr);
    if (mask[1]) grad_input = convolve_adjoint<scalar_t>(upstream, *cotangent_weight);
    if (mask[2]) grad_weight = filter_gradient<scalar_t>(upstream, sources[0].input);
  });
  return {grad_grad_output, grad_input, grad_weight};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
  m.impl("conv3x3_bwd", TORCH_BOX(&conv3x3_bwd_cpu));
  m.impl("conv3x3_bwd_bwd", TORCH_BOX(&conv3x3_bwd_bwd_cpu));
}

}  // namespace mim4dd
