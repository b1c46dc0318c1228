// Images whose channels are last.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "conv3x3.h"

namespace mim4dd {

using torch::stable::Tensor;

inline Tensor channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, torch::headeronly::MemoryFormat::ChannelsLast);
}

inline Tensor empty_channels_last(
    const Tensor& like,
    int64_t first,
    int64_t second,
    int64_t third,
    int64_t fourth) {
  return torch::stable::empty(
      {first, second, third, fourth}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      torch::headeronly::MemoryFormat::ChannelsLast);
}

inline Grid grid_of(const Tensor& images) {
  return {images.size(0), images.size(2), images.size(3)};
}

// Filters (out_channels, in_channels, 3, 3) in any memory order.
template <typename T>
Filters<T> filters_of(const Tensor& weight) {
  return {weight.const_data_ptr<T>(), weight.size(0),   weight.size(1),  weight.stride(0),
          weight.stride(1),           weight.stride(2), weight.stride(3)};
}

// The gradient of filters (out_channels, in_channels, 3, 3) of images, by kernels that are a Table.
template <template <typename> class Table, typename T>
Tensor filter_gradient(const Tensor& grad_output, const Tensor& input) {
  Tensor gradient = empty_channels_last(input, grad_output.size(1), input.size(1), 3, 3);
  if (input.numel() == 0) return torch::stable::zero_(gradient);
  kernels<Table<T>>().filter_gradient(
      grid_of(input), grad_output.const_data_ptr<T>(), grad_output.size(1),
      input.const_data_ptr<T>(), input.size(1), gradient.mutable_data_ptr<T>());
  return gradient;
}

}  // namespace mim4dd
