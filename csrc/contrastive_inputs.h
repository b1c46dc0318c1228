// What the operators of the contrastive losses are given, checked: whole from there on.
#pragma once

#include <optional>
#include <vector>

#include "tensors.h"

namespace mim4dd {

// The numbers of mim4dd/reference/_contrastive.py and mim4dd/ops/_reduction.py.
enum class Kind : int64_t { kOut = 0, kIn = 1, kNce = 2 };
enum class Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2 };

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
inline Inputs checked(Inputs inputs) {
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
          (!bias || (bias->numel() == 1 && bias->scalar_type() == wide)),
      "contrastive: logit_scale and bias must be single numbers, float32 or wider");
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

// By layer and query, what a backward is given. Null: grad_loss is 1 everywhere, grad_lse 0.
template <typename T>
struct Upstream {
  const T *lse = nullptr, *grad_loss = nullptr, *grad_lse = nullptr;
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

}  // namespace mim4dd
