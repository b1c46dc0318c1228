// 3×3 convolutions of images whose channels are last, by Winograd's algorithm.
#include "conv3x3.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "channels_last.h"
#include "conv3x3_checks.h"
#include "dispatch.h"

namespace mim4dd {
namespace {

// Σ input * filters + bias.
template <typename T>
struct Term {
  Tensor input;  // channels last
  Filters<T> filters;
};

template <typename T>
Tensor convolve(const std::vector<Term<T>>& terms, const T* bias) {
  const Tensor& input = terms[0].input;
  Tensor output = empty_channels_last(
      input, input.size(0), terms[0].filters.out_channels, input.size(2), input.size(3));
  if (output.numel() == 0) return output;
  std::vector<Source<T>> sources;
  for (const Term<T>& term : terms) {
    sources.push_back({term.input.template const_data_ptr<T>(), term.filters});
  }
  kernels<Conv3x3<T>>().convolve(
      grid_of(output), sources.data(), static_cast<int64_t>(sources.size()), bias,
      output.mutable_data_ptr<T>());
  return output;
}

template <typename T>
Tensor convolve_adjoint(const Tensor& grad_output, const Tensor& weight) {
  return convolve<T>({{grad_output, filters_of<T>(weight).adjoint()}}, nullptr);
}

bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != b.size(i)) return false;
  }
  return true;
}

void check_cotangent(const std::optional<Tensor>& cotangent, const Tensor& of, bool needed) {
  STD_TORCH_CHECK(cotangent || !needed, "conv3x3_bwd_bwd: mask asks for what no cotangent gives");
  if (!cotangent) return;
  STD_TORCH_CHECK(
      same_sizes(*cotangent, of), "conv3x3_bwd_bwd: a cotangent must have the shape of its tensor");
  check_dtype(*cotangent, of);
}

}  // namespace

Tensor conv3x3_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_images(input, weight);
  check_bias(bias, input, weight);
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
    if (mask[1]) grad_weight = filter_gradient<Conv3x3, scalar_t>(upstream, channels_last(input));
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
    std::vector<Term<scalar_t>> terms;
    if (cotangent_input) {
      terms.push_back({channels_last(*cotangent_input), filters_of<scalar_t>(weight)});
    }
    if (mask[0] && cotangent_weight) {
      terms.push_back({channels_last(input), filters_of<scalar_t>(*cotangent_weight)});
    }
    const Tensor upstream = channels_last(grad_output);
    if (mask[0]) grad_grad_output = convolve<scalar_t>(terms, nullptr);
    if (mask[1]) grad_input = convolve_adjoint<scalar_t>(upstream, *cotangent_weight);
    if (mask[2]) grad_weight = filter_gradient<Conv3x3, scalar_t>(upstream, terms[0].input);
  });
  return {grad_grad_output, grad_input, grad_weight};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3_cpu));
  m.impl("conv3x3_bwd", TORCH_BOX(&conv3x3_bwd_cpu));
  m.impl("conv3x3_bwd_bwd", TORCH_BOX(&conv3x3_bwd_bwd_cpu));
}

}  // namespace mim4dd
