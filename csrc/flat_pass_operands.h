// The tensors that go into a flat pass.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <type_traits>

#include "dispatch.h"
#include "flat_pass.h"

namespace mim4dd {

using torch::stable::Tensor;

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(as_contiguous(*tensor)) : std::nullopt;
}

template <typename T>
const T* pointer_or(const std::optional<Tensor>& tensor, const T* instead) {
  return tensor.has_value() ? tensor->const_data_ptr<T>() : instead;
}

inline Tensor new_doubles(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size) {
  return torch::stable::new_empty(like, size, torch::headeronly::ScalarType::Double);
}

// What memory safety needs; the messages for users are in mim4dd/ops.
inline void
check_like(const char* op, const Tensor& first, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(
      tensor.numel() == first.numel(), op, ": ", name, " must have ", first.numel(),
      " elements, got ", tensor.numel());
  STD_TORCH_CHECK(
      tensor.scalar_type() == first.scalar_type() && tensor.device() == first.device(), op, ": ",
      name, " must have the dtype and device of the first argument");
}

inline void check_like(
    const char* op,
    const Tensor& first,
    const char* name,
    const std::optional<Tensor>& tensor) {
  if (tensor.has_value()) check_like(op, first, name, *tensor);
}

inline void check_step_size(const char* op, const Tensor& first, const Tensor& lr) {
  STD_TORCH_CHECK(
      lr.numel() == 1 || lr.numel() == first.numel(), op, ": lr must have 1 or ", first.numel(),
      " elements, got ", lr.numel());
  STD_TORCH_CHECK(
      lr.scalar_type() == first.scalar_type() && lr.device() == first.device(), op,
      ": lr must have the dtype and device of the first argument");
}

// body(std::true_type) or body(std::false_type).
template <typename Body>
void with_flag(bool flag, const Body& body) {
  flag ? body(std::true_type()) : body(std::false_type());
}

}  // namespace mim4dd
