// Tensors as matrices, and matrices as tensors.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>

#include "matrix.h"

namespace mim4dd {

using torch::stable::Tensor;

template <typename T>
constexpr torch::headeronly::ScalarType scalar_type_of() {
  return sizeof(T) == 4 ? torch::headeronly::ScalarType::Float
                        : torch::headeronly::ScalarType::Double;
}

template <typename T>
Tensor view_of(const Matrix<T>& matrix) {
  const std::array<int64_t, 2> sizes{matrix.rows, matrix.columns};
  const std::array<int64_t, 2> strides{matrix.row_stride, matrix.column_stride};
  return torch::stable::from_blob(
      matrix.data, sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      scalar_type_of<T>());
}

// By the way of compiled models: a quarter of the time of torch::stable::empty, which looks its op
// up by name.
template <typename T, size_t kRank>
Tensor empty_tensor(const std::array<int64_t, kRank>& sizes) {
  std::array<int64_t, kRank> strides;
  int64_t stride = 1;
  for (size_t i = kRank; i-- > 0; stride *= sizes[i]) strides[i] = stride;
  const int32_t dtype = sizeof(T) == 4 ? aoti_torch_dtype_float32() : aoti_torch_dtype_float64();
  AtenTensorHandle tensor;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      kRank, sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &tensor));
  return Tensor(tensor);
}

template <typename T>
Tensor empty_matrix(int64_t rows, int64_t columns) {
  return empty_tensor<T, 2>({rows, columns});
}

template <typename T>
Matrix<T> as_matrix(const Tensor& tensor) {
  return {
      tensor.mutable_data_ptr<T>(), tensor.size(0), tensor.size(1), tensor.stride(0),
      tensor.stride(1)};
}

template <typename T>
Tensor as_type(const Tensor& tensor) {
  return torch::stable::contiguous(
      tensor.scalar_type() == scalar_type_of<T>() ? tensor
                                                  : torch::stable::to(tensor, scalar_type_of<T>()));
}

}  // namespace mim4dd
