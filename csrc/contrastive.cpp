// The operators of the contrastive losses and of their first derivatives on a CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "contrastive_first_order.h"

namespace mim4dd {
namespace {

// reduced, count, loss, lse, positive_weight, unit_gradients
using Contrast = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>;

template <typename T, size_t kRank>
Tensor zeros(const std::array<int64_t, kRank>& sizes) {
  Tensor tensor = empty_tensor<T, kRank>(sizes);
  std::fill_n(tensor.mutable_data_ptr<T>(), tensor.numel(), T(0));
  return tensor;
}

// 1 / |P| of every query that has a loss. No layer changes it, so no task of one writes it.
template <typename T>
void write_positive_weights(const Problem<T>& problem, T* weights) {
  const Pairs& pairs = problem.pairs;
  for (int64_t row = 0; row < pairs.rows(); ++row) {
    if (problem.counts(row)) weights[pairs.queries[row]] = 1 / T(pairs.num_positives[row]);
  }
}

// The mean or the sum of the losses of every layer, (layers,), and over how many queries, ().
template <typename T>
std::tuple<Tensor, Tensor>
reduce(Reduction reduction, const T* losses, int64_t count, int64_t layers, int64_t n) {
  const bool reduced = reduction != Reduction::kEach;
  Tensor values = empty_tensor<T, 1>({reduced ? layers : 0});
  for (int64_t layer = 0; layer < layers && reduced; ++layer) {
    const T* loss = losses + layer * n;
    const double sum = std::accumulate(loss, loss + n, 0.0);
    values.mutable_data_ptr<T>()[layer] =
        T(reduction == Reduction::kMean ? sum / double(count) : sum);
  }
  Tensor counted = empty_tensor<T, 0>({});
  *counted.mutable_data_ptr<T>() = T(count);
  return {values, counted};
}

}  // namespace

Contrast contrastive_cpu(
    std::vector<Tensor> query,
    std::vector<Tensor> key,
    Tensor labels,
    std::optional<Tensor> key_labels,
    std::optional<Tensor> excluded,
    Tensor logit_scale,
    std::optional<Tensor> bias,
    int64_t kind,
    bool decoupled,
    double hardness,
    bool normalize,
    int64_t reduction,
    std::vector<bool> gradients) {
  const Inputs inputs = check_inputs(
      {make_critic(kind, decoupled, hardness, normalize), query, key, labels, key_labels, excluded,
       logit_scale, bias});
  const Reduction how = checked(reduction, Reduction::kSum, "reduction");
  const int64_t layers = inputs.layers(), n = inputs.queries();
  Contrast result;
  MIM4DD_DISPATCH_FLOATING(inputs.wide(), "contrastive", [&] {
    // What is ignored keeps its 0.
    Tensor loss = zeros<scalar_t, 2>({layers, n}), lse = zeros<scalar_t, 2>({layers, n});
    Tensor positive_weight = zeros<scalar_t, 1>({n});
    const auto problem = make_problem<scalar_t>(inputs);
    auto* const losses = loss.mutable_data_ptr<scalar_t>();
    auto* const weights = positive_weight.mutable_data_ptr<scalar_t>();
    write_positive_weights(problem, weights);
    const int64_t num_counted = n - std::count(weights, weights + n, scalar_t(0));
    Upstream<scalar_t> upstream;
    if (how == Reduction::kMean) upstream.each = 1 / scalar_t(num_counted);
    FirstOrder<scalar_t> pass(problem, n, make_wanted(gradients));
    pass.run(upstream, {losses, lse.mutable_data_ptr<scalar_t>()});
    const auto [reduced, count] = reduce(how, losses, num_counted, layers, n);
    result = {reduced, count, loss, lse, positive_weight, pass.gradients(false)};
  });
  return result;
}

std::vector<Tensor> contrastive_bwd_cpu(
    std::vector<Tensor> query,
    std::vector<Tensor> key,
    Tensor labels,
    std::optional<Tensor> key_labels,
    std::optional<Tensor> excluded,
    Tensor logit_scale,
    std::optional<Tensor> bias,
    int64_t kind,
    bool decoupled,
    double hardness,
    bool normalize,
    Tensor lse,
    Tensor /*positive_weight*/,
    Tensor grad_loss,
    std::optional<Tensor> grad_lse,
    std::vector<bool> gradients) {
  const Inputs inputs = check_inputs(
      {make_critic(kind, decoupled, hardness, normalize), query, key, labels, key_labels, excluded,
       logit_scale, bias});
  std::vector<Tensor> result;
  MIM4DD_DISPATCH_FLOATING(inputs.wide(), "contrastive_bwd", [&] {
    const UpstreamTensors<scalar_t> upstream(inputs, lse, grad_loss, grad_lse);
    const auto problem = make_problem<scalar_t>(inputs);
    FirstOrder<scalar_t> pass(problem, inputs.queries(), make_wanted(gradients));
    pass.run(upstream.pointers(), {});
    result = pass.gradients(true);
  });
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("contrastive", TORCH_BOX(&contrastive_cpu));
  m.impl("contrastive_bwd", TORCH_BOX(&contrastive_bwd_cpu));
}

}  // namespace mim4dd
