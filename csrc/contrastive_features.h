// One side of one layer: its rows as the products need them, and their gradient on its way back.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <vector>

#include "feature_rows.h"
#include "gemm.h"
#include "parallel.h"

namespace mim4dd {

// Numbers too few to be worth another thread.
constexpr int64_t kGrain = int64_t{1} << 15;
// As torch.nn.functional.normalize: shorter rows are divided by this, not by their length.
constexpr double kSmallestNorm = 1e-12;
// Lengths whose products with a unit row are far from overflow and from denormal numbers.
constexpr double kShortestFactored = 1e-9, kLongestFactored = 1e9;

// exp of a logit of this size, and the sum of millions of them, is neither infinite nor denormal
// without any shift.
template <typename T>
constexpr double kSafeLogit = sizeof(T) == 4 ? 40 : 300;

template <typename T>
struct Features {
  int64_t num_inputs;
  torch::headeronly::ScalarType dtype;  // of the input
  Matrix<T> rows;
  Tensor storage;             // what rows points into
  std::vector<double> norms;  // of the input's rows where they were normalised, else empty
  std::vector<T> factors;     // of each row, what is left to multiply it by; empty: nothing
  double longest =
      0;  // an upper bound on the length of a row, multiplied; not finite if one is not

  int64_t dimension() const { return rows.columns; }
};

// How rows become unit rows: not at all, in a copy, or, where a copy can be done without, by
// factors for the products that they enter.
enum class Normalize { kNot, kCopy, kFactors };

// The length of a row of any finite size; not finite if an element is not.
template <typename T>
double length_of(const T* row, int64_t dimension) {
  const double square = feature_rows<T>().sum_of_squares(row, dimension);
  if (std::isfinite(square)) return std::sqrt(square);
  double largest = 0;  // the squares overflowed
  for (int64_t d = 0; d < dimension; ++d) {
    const double size = std::abs(double(row[d]));
    if (!(size <= largest)) largest = size;
    if (std::isnan(size)) break;
  }
  double scaled = 0;
  for (int64_t d = 0; d < dimension; ++d) scaled += std::pow(row[d] / largest, 2);
  return largest * std::sqrt(scaled);
}

// body(row) for all rows of so many numbers.
template <typename Body>
void for_rows(int64_t rows, int64_t dimension, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kGrain / dimension);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// Not std::max, which drops a NaN.
inline double longest_of(const std::vector<double>& norms) {
  double longest = 0;
  for (const double norm : norms) {
    if (!(norm <= longest)) longest = norm;
    if (std::isnan(norm)) break;
  }
  return longest;
}

// Leave the rows as they are, if their lengths allow it.
template <typename T>
bool take_factors(Features<T>& features) {
  const int64_t n = features.rows.rows, dimension = features.dimension();
  std::vector<double> norms(n);
  for_rows(n, dimension, [&](int64_t i) { norms[i] = length_of(features.rows.row(i), dimension); });
  features.factors.reserve(n);
  for (const double norm : norms) {
    if (!(kShortestFactored <= norm && norm <= kLongestFactored)) {
      features.factors.clear();
      return false;
    }
    features.factors.push_back(T(1 / norm));
  }
  features.norms = std::move(norms);
  features.longest = 1;
  return true;
}

// The kept rows of (N, D), copied only where the layout, the dtype or the length of a row has to
// change.
template <typename T>
Features<T>
make_features(const Tensor& input, const std::vector<int64_t>& kept, Normalize normalize) {
  const int64_t n = static_cast<int64_t>(kept.size()), dimension = input.size(1);
  const bool converted = input.scalar_type() != scalar_type_of<T>();
  const Tensor source = converted ? torch::stable::to(input, scalar_type_of<T>()) : input;
  const Matrix<T> all = as_matrix<T>(source);
  const bool usable = n == input.size(0) && (all.column_stride == 1 || dimension == 1) &&
                      all.row_stride >= dimension;
  Features<T> features{input.size(0), input.scalar_type(), all, source, {}, {}};
  features.rows.column_stride = 1;  // D = 1 may come with any
  if (usable && normalize == Normalize::kFactors && take_factors(features)) return features;
  const bool copied = !usable || normalize != Normalize::kNot;
  if (copied) {
    features.storage = empty_matrix<T>(n, dimension);
    features.rows = as_matrix<T>(features.storage);
    features.rows.column_stride = 1;
  }
  std::vector<double> norms(n);
  for_rows(n, dimension, [&](int64_t i) {
    T* row = features.rows.row(i);
    if (copied) {
      const T* from = all.row(kept[i]);
      for (int64_t d = 0; d < dimension; ++d) row[d] = from[d * all.column_stride];
    }
    norms[i] = length_of(row, dimension);
    if (normalize != Normalize::kNot) {
      feature_rows<T>().scale_row(row, dimension, T(1 / std::max(norms[i], kSmallestNorm)));
    }
  });
  features.longest = longest_of(norms);
  if (normalize != Normalize::kNot) {
    if (std::isfinite(features.longest)) features.longest = 1;
    features.norms = std::move(norms);
  }
  return features;
}

// From the gradient of x / |x| to that of x, for one row x / |x|.
template <typename T>
void undo_normalize(T* gradient, const T* unit, int64_t dimension, double norm) {
  const T inverse = T(1 / std::max(norm, kSmallestNorm));
  const T along = norm > kSmallestNorm ? feature_rows<T>().dot(gradient, unit, dimension) : T(0);
  feature_rows<T>().combine(gradient, unit, dimension, inverse, -along * inverse);
}

// The same for a row x that was left as it is, from the gradient of x / |x| times its factor 1 /
// |x|.
template <typename T>
void undo_factor(T* gradient, const T* row, int64_t dimension, T factor) {
  const T along = factor * feature_rows<T>().dot(gradient, row, dimension);
  feature_rows<T>().combine(gradient, row, dimension, T(1), -along * factor);
}

// The gradient of the rows, times their factors, as that of the input, of which these were kept; 0
// for what was left out. It is rounded to the input's dtype where nothing is left to multiply it
// by: before, it could overflow float16 or vanish there.
template <typename T>
Tensor gradient_of_input(
    const Features<T>& features,
    const std::vector<int64_t>& kept,
    const Tensor& gradient,
    bool rounded) {
  const int64_t n = features.rows.rows, dimension = features.dimension();
  const bool in_place = n == features.num_inputs;
  Tensor result = in_place ? gradient : empty_matrix<T>(features.num_inputs, dimension);
  if (!in_place) torch::stable::zero_(result);
  const Matrix<T> from = as_matrix<T>(gradient), out = as_matrix<T>(result);
  for_rows(in_place && features.norms.empty() ? 0 : n, dimension, [&](int64_t i) {
    T* gradient_row = out.row(kept[i]);
    const T* row = features.rows.row(i);
    if (!in_place) feature_rows<T>().scaled_copy(from.row(i), gradient_row, dimension, T(1));
    if (!features.factors.empty()) {
      undo_factor(gradient_row, row, dimension, features.factors[i]);
    } else if (!features.norms.empty()) {
      undo_normalize(gradient_row, row, dimension, features.norms[i]);
    }
  });
  const bool as_it_is = !rounded || features.dtype == scalar_type_of<T>();
  return as_it_is ? result : torch::stable::to(result, features.dtype);
}

}  // namespace mim4dd
