// The contrastive losses on a CPU, for all layers of one call: what their ops are given, and what
// is made of it. mim4dd/reference/ defines them.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "contrastive_features.h"
#include "contrastive_pairs.h"
#include "dispatch.h"
#include "tensors.h"
#include "wave.h"

namespace mim4dd {

// The numbers of mim4dd/reference/_contrastive.py.
enum class Kind : int64_t { kOut = 0, kIn = 1, kNce = 2 };
enum class Reduction : int64_t { kEach = 0, kMean = 1, kSum = 2 };

// An enumerator from the number that an op was given; the last is the largest.
template <typename Enum>
Enum checked(int64_t number, Enum last, const char* name) {
  STD_TORCH_CHECK(
      number >= 0 && number <= static_cast<int64_t>(last), "contrastive: ", name,
      " must lie in [0, ", static_cast<int64_t>(last), "], got ", number);
  return static_cast<Enum>(number);
}

struct Critic {
  Kind kind;
  bool decoupled;
  double hardness;
  bool normalize;
};

inline Critic make_critic(int64_t kind, bool decoupled, double hardness, bool normalize) {
  return {checked(kind, Kind::kNce, "kind"), decoupled, hardness, normalize};
}

// Which gradients are wanted.
struct Wanted {
  bool query = false, key = false, logit_scale = false, bias = false;
};

inline Wanted make_wanted(const std::vector<bool>& flags) {
  STD_TORCH_CHECK(flags.size() == 4, "contrastive: gradients must be 4 flags, got ", flags.size());
  return {flags[0], flags[1], flags[2], flags[3]};
}

struct Inputs {
  Critic critic;
  std::vector<Tensor> query, key;    // for every layer (N, D) and (M, D)
  Tensor labels;                     // (N,)
  std::optional<Tensor> key_labels;  // (M,); without, key i belongs to query i
  std::optional<Tensor> excluded;    // (N, K), indices of keys
  Tensor logit_scale;
  std::optional<Tensor> bias;

  int64_t layers() const { return static_cast<int64_t>(query.size()); }
  int64_t queries() const { return labels.numel(); }
  torch::headeronly::ScalarType wide() const { return logit_scale.scalar_type(); }
};

// What memory safety needs; the messages for users are in mim4dd/ops/.
inline Inputs check_inputs(Inputs inputs) {
  using torch::headeronly::ScalarType;
  const auto& [critic, query, key, labels, key_labels, excluded, logit_scale, bias] = inputs;
  STD_TORCH_CHECK(
      !query.empty() && query.size() == key.size(),
      "contrastive: query and key must hold the same layers, got ", query.size(), " and ",
      key.size());
  const ScalarType dtype = query[0].scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  for (size_t i = 0; i < query.size(); ++i) {
    STD_TORCH_CHECK(
        query[i].dim() == 2 && key[i].dim() == 2 && query[i].size(1) == key[i].size(1) &&
            query[i].size(1) > 0 && query[i].size(0) == labels.numel() &&
            key[i].size(0) == key[0].size(0),
        "contrastive: layer ", i, " must hold query (N, D) and key (M, D)");
    STD_TORCH_CHECK(
        query[i].scalar_type() == dtype && key[i].scalar_type() == dtype,
        "contrastive: all features must share a dtype");
  }
  STD_TORCH_CHECK(
      logit_scale.numel() == 1 && logit_scale.scalar_type() == wide &&
          (!bias || ((bias->numel() == 1 || bias->numel() == labels.numel()) &&
                     bias->scalar_type() == wide)),
      "contrastive: logit_scale and bias must be single numbers, float32 or wider; a bias may also "
      "be (N,)");
  STD_TORCH_CHECK(
      labels.scalar_type() == ScalarType::Long && labels.dim() == 1 &&
          (!key_labels || (key_labels->scalar_type() == ScalarType::Long &&
                           key_labels->dim() == 1 && key_labels->numel() == key[0].size(0))),
      "contrastive: labels must be (N,) and key_labels (M,), int64");
  STD_TORCH_CHECK(
      !excluded || (excluded->scalar_type() == ScalarType::Long && excluded->dim() == 2 &&
                    excluded->size(0) == labels.numel()),
      "contrastive: excluded must be (N, K), int64");
  return inputs;
}

// By layer and query, what a backward is given. Null: grad_loss is `each` everywhere, grad_lse 0.
template <typename T>
struct Upstream {
  const T *lse = nullptr, *grad_loss = nullptr, *grad_lse = nullptr;
  T each = 1;
};

// Its tensors as T, which own them.
template <typename T>
class UpstreamTensors {
 public:
  UpstreamTensors(
      const Inputs& inputs,
      const Tensor& lse,
      const Tensor& grad_loss,
      const std::optional<Tensor>& grad_lse)
      : lse_(given(inputs, lse)), grad_loss_(given(inputs, grad_loss)) {
    if (grad_lse) grad_lse_ = given(inputs, *grad_lse);
  }

  Upstream<T> pointers() const {
    return {
        lse_.const_data_ptr<T>(), grad_loss_.const_data_ptr<T>(),
        grad_lse_ ? grad_lse_->const_data_ptr<T>() : nullptr};
  }

 private:
  static Tensor given(const Inputs& inputs, const Tensor& tensor) {
    STD_TORCH_CHECK(
        tensor.numel() == inputs.layers() * inputs.queries(),
        "contrastive: upstream gradients and lse must be (layers, N)");
    return as_type<T>(tensor);
  }

  Tensor lse_, grad_loss_;
  std::optional<Tensor> grad_lse_;
};

// One layer. Only keys may have factors left.
template <typename T>
struct Layer {
  Features<T> query, key;
};

template <typename T>
struct Problem {
  Critic critic;
  Pairs pairs;
  std::vector<Layer<T>> layers;
  T logit_scale;
  std::vector<T> bias;  // of every query, one for all of them, or none

  // The column, if the row has one positive and that in the denominator, where what is left of
  // p - 1 is formed from the other keys.
  int64_t sole_positive(int64_t row) const {
    return critic.kind == Kind::kOut && !critic.decoupled ? pairs.positive[row] : kNone;
  }
  // No row has more than that: then no sum has to look at labels.
  bool by_index() const { return critic.kind == Kind::kOut && !critic.decoupled && !pairs.several; }
  // Whether a row has a loss.
  bool counts(int64_t row) const {
    const int64_t positives = pairs.num_positives[row];
    return positives > 0 && (!critic.decoupled || positives < pairs.num_keys(row));
  }
  // What is added to the logits of a row by the binary critic.
  T bias_of(int64_t row) const {
    if (!bias.empty()) return bias[bias.size() == 1 ? 0 : pairs.queries[row]];
    const T keys = T(std::max<int64_t>(1, pairs.num_keys(row)));
    return -std::log(
        T(std::max<int64_t>(1, pairs.num_keys(row) - pairs.num_positives[row])) / keys);
  }
  // A bound on the size of every logit of a layer.
  double largest_logit(const Layer<T>& layer) const {
    const double similarity = layer.query.longest * layer.key.longest;
    return similarity * (std::abs(double(logit_scale)) + critic.hardness);
  }
  // Whether exp needs no shift.
  bool bounded(const Layer<T>& layer) const { return largest_logit(layer) <= kSafeLogit<T>; }
  // From the largest to the smallest layer, so that threads finish together.
  std::vector<int64_t> order() const {
    std::vector<int64_t> order(layers.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto key = [&](int64_t i) { return std::make_pair(-layers[i].query.dimension(), i); };
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    return order;
  }
};

template <typename T>
Problem<T> make_problem(const Inputs& inputs) {
  const auto& [critic, query, key, labels, key_labels, excluded, logit_scale, bias] = inputs;
  const Tensor labels_c = torch::stable::contiguous(labels);
  const Tensor key_labels_c = key_labels ? torch::stable::contiguous(*key_labels) : labels_c;
  const Tensor excluded_c = excluded ? torch::stable::contiguous(*excluded) : labels_c;
  const T scale = *logit_scale.const_data_ptr<T>();
  // A negative temperature would give a finite loss that means nothing.
  const bool valid = scale > 0 && std::isfinite(scale);
  Problem<T> problem{
      critic,
      make_pairs(
          labels_c.const_data_ptr<int64_t>(), labels.numel(),
          key_labels ? key_labels_c.const_data_ptr<int64_t>() : nullptr, key[0].size(0),
          excluded_c.const_data_ptr<int64_t>(), excluded ? excluded->size(1) : 0),
      {},
      valid ? scale : std::numeric_limits<T>::quiet_NaN(),
      {}};
  if (bias) {
    const Tensor bias_c = torch::stable::contiguous(*bias);
    problem.bias.assign(bias_c.const_data_ptr<T>(), bias_c.const_data_ptr<T>() + bias_c.numel());
  }
  for (size_t i = 0; i < query.size(); ++i) {
    problem.layers.push_back(
        {make_features<T>(
             query[i], problem.pairs.queries,
             critic.normalize ? Normalize::kCopy : Normalize::kNot),
         make_features<T>(
             key[i], problem.pairs.keys,
             critic.normalize ? Normalize::kFactors : Normalize::kNot)});
  }
  return problem;
}

// Terms by layer and row, summed over the rows: in one order, whatever thread computed what.
template <typename T>
Tensor sum_by_layer(const std::vector<T>& terms, int64_t layers, int64_t rows) {
  Tensor result = torch::stable::empty({layers}, scalar_type_of<T>());
  for (int64_t layer = 0; layer < layers; ++layer) {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += terms[layer * rows + row];
    result.mutable_data_ptr<T>()[layer] = static_cast<T>(sum);
  }
  return result;
}

// The list that the ops return, from the gradients of rows and columns and the terms of the
// scalars'; rounded to the dtype of the features or not.
template <typename T>
std::vector<Tensor> wanted_gradients(
    const Problem<T>& problem,
    const Wanted& wanted,
    bool rounded,
    const std::vector<Tensor>& of_rows,
    const std::vector<Tensor>& of_columns,
    const std::vector<T>& scale_terms,
    const std::vector<T>& bias_terms) {
  const int64_t layers = problem.layers.size(), rows = problem.pairs.rows();
  std::vector<Tensor> result;
  for (int64_t i = 0; i < layers && wanted.query; ++i) {
    result.push_back(
        gradient_of_input(problem.layers[i].query, problem.pairs.queries, of_rows[i], rounded));
  }
  for (int64_t i = 0; i < layers && wanted.key; ++i) {
    result.push_back(
        gradient_of_input(problem.layers[i].key, problem.pairs.keys, of_columns[i], rounded));
  }
  if (wanted.logit_scale) result.push_back(sum_by_layer(scale_terms, layers, rows));
  if (wanted.bias) result.push_back(sum_by_layer(bias_terms, layers, rows));
  return result;
}

}  // namespace mim4dd
