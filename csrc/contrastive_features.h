// One side of one layer: its rows as the products need them, and their gradient on its way back.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <vector>

#include "feature_rows.h"
#include "gemm.h"

namespace mim4dd {

// Rows too few to be worth another thread.
constexpr int64_t kRowGrain = 256;
// As torch.nn.functional.normalize: shorter rows are divided by this, not by their length.
constexpr double kSmallestNorm = 1e-12;

// exp of a logit of this size, and the sum of millions of them, is neither infinite nor denormal
// without any shift.
template <typename T>
constexpr double kSafeLogit = sizeof(T) == 4 ? 40 : 300;

template <typename T>
struct Features {
  const int64_t* kept;  // of each row, its index in the input
  int64_t num_inputs;
  torch::headeronly::ScalarType dtype;  // of the input
  Matrix<T> rows;
  Tensor storage;             // what rows points into
  std::vector<double> norms;  // of the input's rows where they were normalised, else empty
  double longest;  // an upper bound on the length of a row of `rows`; not finite if one is not

  int64_t dimension() const { return rows.columns; }
};

// The length of a row of any finite size; not finite if an element is not.
template <typename T>
double length_of(const T* row, int64_t dimension) {
  const double square = sum_of_squares(row, dimension);
  if (std::isfinite(square)) return std::sqrt(square);
  double largest = 0;  // float64 whose squares overflow
  for (int64_t d = 0; d < dimension; ++d) {
    const double size = std::abs(double(row[d]));
    if (!(size <= largest)) largest = size;
    if (std::isnan(size)) break;
  }
  double scaled = 0;
  for (int64_t d = 0; d < dimension; ++d) scaled += std::pow(row[d] / largest, 2);
  return largest * std::sqrt(scaled);
}

// The kept rows of (N, D), copied only where the layout, the dtype or the length of a row has to
// change.
template <typename T>
Features<T> make_features(const Tensor& input, const std::vector<int64_t>& kept, bool normalize) {
  const int64_t n = static_cast<int64_t>(kept.size()), dimension = input.size(1);
  const bool converted = input.scalar_type() != scalar_type_of<T>();
  const Tensor source = converted ? torch::stable::to(input, scalar_type_of<T>()) : input;
  const Matrix<T> all = as_matrix<T>(source);
  const bool as_is = !normalize && n == input.size(0) &&
                     (all.column_stride == 1 || dimension == 1) && all.row_stride >= dimension;
  Features<T> features{kept.data(), input.size(0), input.scalar_type(), all, source, {}, 0.0};
  if (!as_is) {
    features.storage = empty_matrix<T>(n, dimension);
    features.rows = as_matrix<T>(features.storage);
  }
  features.rows.column_stride = 1;  // D = 1 may come with any
  std::vector<double> norms(n);
  torch::stable::parallel_for(0, n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = features.rows.row(i);
      if (!as_is) {
        const T* from = all.row(kept[i]);
        for (int64_t d = 0; d < dimension; ++d) row[d] = from[d * all.column_stride];
      }
      norms[i] = length_of(row, dimension);
      if (normalize) scale_row(row, dimension, T(1 / std::max(norms[i], kSmallestNorm)));
    }
  });
  for (const double norm : norms) {
    // Not std::max, which drops a NaN.
    if (!(norm <= features.longest)) features.longest = norm;
    if (std::isnan(norm)) break;
  }
  if (normalize) {
    if (std::isfinite(features.longest)) features.longest = 1;
    features.norms = std::move(norms);
  }
  return features;
}

// From the gradient of x / |x| to that of x, for one row x / |x|.
template <typename T>
void undo_normalize(T* gradient, const T* unit, int64_t dimension, double norm) {
  const T inverse = T(1 / std::max(norm, kSmallestNorm));
  const T along = norm > kSmallestNorm ? dot(gradient, unit, dimension) : T(0);
  combine(gradient, unit, dimension, inverse, -along * inverse);
}

// The gradient of the rows as that of the input, in its dtype; 0 for what was left out.
template <typename T>
Tensor gradient_of_input(const Features<T>& features, const Tensor& gradient) {
  const int64_t n = features.rows.rows, dimension = features.dimension();
  const bool in_place = n == features.num_inputs;
  Tensor result = in_place ? gradient : empty_matrix<T>(features.num_inputs, dimension);
  if (!in_place) torch::stable::zero_(result);
  const Matrix<T> from = as_matrix<T>(gradient), out = as_matrix<T>(result);
  torch::stable::parallel_for(0, n, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = out.row(features.kept[i]);
      if (!in_place) scaled_copy(from.row(i), row, dimension, T(1));
      if (!features.norms.empty()) {
        undo_normalize(row, features.rows.row(i), dimension, features.norms[i]);
      }
    }
  });
  return features.dtype == scalar_type_of<T>() ? result : torch::stable::to(result, features.dtype);
}

}  // namespace mim4dd
