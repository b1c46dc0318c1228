// Weights by index in panels of queries, where one pass over the logits is enough.
#pragma once

#include <limits>
#include <vector>

#include "contrastive.h"
#include "contrastive_tile.h"
#include "panels.h"

namespace mim4dd {

// Keys that are multiplied at a time: a run of what a query's gradient sums.
constexpr int64_t kPanelKeys = kPanelRun;
// Queries that repay a copy of the keys.
constexpr int64_t kPanelsFrom = 128;

// The keys of a layer, times their factors, as products with panels read them: block by block.
template <typename T>
class PackedKeys {
 public:
  PackedKeys(const Features<T>& keys, bool gradient)
      : dimension_(keys.dimension()),
        for_logits_(empty_workspace<T>(keys.rows.rows, dimension_)),
        for_gradient_(empty_workspace<T>(gradient ? keys.rows.rows : 0, dimension_)) {
    const int64_t count = keys.rows.rows, blocks = divide_up(count, kPanelKeys);
    T* const logits = for_logits_.template mutable_data_ptr<T>();
    T* const gradients = for_gradient_.template mutable_data_ptr<T>();
    run_tasks(num_threads(), blocks, [&](int64_t, int64_t i) {
      const int64_t left = i * kPanelKeys, right = std::min(count, left + kPanelKeys);
      Matrix<T> block = keys.rows.middle_rows(left, right);
      std::vector<T> scaled(keys.factors.empty() ? 0 : block.rows * dimension_);
      if (!scaled.empty()) {
        for (int64_t j = 0; j < block.rows; ++j) {
          feature_rows<T>().scaled_copy(
              block.row(j), scaled.data() + j * dimension_, dimension_, keys.factors[left + j]);
        }
        block = {scaled.data(), block.rows, dimension_, dimension_};
      }
      panels<T>().pack_left(block, logits + left * dimension_);
      if (gradient) panels<T>().pack_left(block.transposed(), gradients + left * dimension_);
    });
  }

  const T* for_logits(int64_t left) const {
    return for_logits_.template const_data_ptr<T>() + left * dimension_;
  }
  const T* for_gradient(int64_t left) const {
    return for_gradient_.template const_data_ptr<T>() + left * dimension_;
  }

 private:
  const int64_t dimension_;
  const Tensor for_logits_, for_gradient_;
};

// Rows [first, last) of a segment against all columns, as panels.
template <typename T>
class PanelTile {
 public:
  PanelTile(
      const Problem<T>& of,
      const PackedKeys<T>& keys,
      const Segment<T>& segment,
      int64_t begin,
      int64_t end)
      : problem(of),
        layer(of.layers[segment.layer]),
        first(begin),
        last(end),
        keys_(keys),
        segment_(segment),
        sums_(end - begin) {}

  // Whether it serves, and is faster.
  static bool serves(const Problem<T>& problem, bool known) {
    bool one_pass = true;
    for (const Layer<T>& layer : problem.layers) {
      one_pass = one_pass && (known || problem.bounded(layer));
    }
    return one_pass && problem.by_index() && problem.critic.hardness == 0 &&
           problem.pairs.rows() >= kPanelsFrom && panels<T>().width > 0;
  }

  const Problem<T>& problem;
  const Layer<T>& layer;
  const int64_t first, last;

  RowSums<T>& sums(int64_t row) { return sums_[row - first]; }

  // The weight of a pair, without the key's factor.
  T& at(int64_t row, int64_t column) const {
    return panel(row)[column * width_ + (row - segment_.begin) % width_];
  }

  // Form exp(logits - shift) with 0 for what is left out, the sums of every row, and, unless
  // null, its sum of keys by these weights.
  void exponentiate(const T* lse, const Matrix<T>* gradient) {
    const int64_t rows = last - first, dimension = layer.query.dimension();
    const int64_t padded = round_up(rows, width_);
    std::vector<T> shifts(padded), negative(padded);
    for (int64_t row = first; row < last && lse != nullptr; ++row) {
      sums(row).set_shift(lse[problem.pairs.queries[row]]);
      shifts[row - first] = sums(row).shift;
    }
    const Tensor query_panels = empty_matrix<T>(padded, dimension);
    const Tensor gradient_panels = empty_matrix<T>(gradient == nullptr ? 0 : padded, dimension);
    T* const queries = query_panels.mutable_data_ptr<T>();
    T* const gradients = gradient_panels.mutable_data_ptr<T>();
    panels<T>().pack_panels(layer.query.rows.middle_rows(first, last).transposed(), queries);
    for (int64_t left = 0; left < segment_.columns; left += kPanelKeys) {
      const int64_t right = std::min(segment_.columns, left + kPanelKeys), count = right - left;
      for (int64_t i = 0; i < rows; i += width_) {
        T* const logits = panel(first + i) + left * width_;
        panels<T>().multiply_panel(
            logits, keys_.for_logits(left), count, queries + i * dimension, dimension, false,
            problem.logit_scale);
        leave_out(first + i, std::min(last, first + i + width_), left, right);
        panels<T>().exponentiate_panel(logits, count, shifts.data() + i, negative.data() + i);
      }
      // In a loop of its own: the second cache need not hold the keys twice.
      for (int64_t i = 0; i < rows && gradient != nullptr; i += width_) {
        panels<T>().multiply_panel(
            gradients + i * dimension, keys_.for_gradient(left), dimension,
            panel(first + i) + left * width_, count, left > 0, T(1));
      }
    }
    for (int64_t row = first; row < last; ++row) {
      sums(row).negative = negative[row - first];
      if (problem.pairs.positive[row] != kNone) sums(row).add_positive();
      if (gradient == nullptr) continue;
      const int64_t i = (row - first) / width_ * width_, lane = row - first - i;
      T* const to = gradient->row(row - first);
      for (int64_t d = 0; d < dimension; ++d) to[d] = gradients[i * dimension + d * width_ + lane];
    }
  }

  // Multiply the weights of each row by a factor.
  void scale_rows(const std::vector<T>& factors) const {
    for (int64_t row = first; row < last; row += width_) {
      const int64_t count = std::min(width_, last - row);
      T* weights = panel(row);
      for (int64_t j = 0; j < segment_.columns; ++j, weights += width_) {
        for (int64_t i = 0; i < count; ++i) weights[i] *= factors[row - first + i];
      }
    }
  }

  // A query times `factor`, among those of its segment as multiply_weights reads them.
  void pack_query(int64_t row, T factor, T* packed) const {
    const int64_t dimension = layer.query.dimension(), place = row - segment_.begin;
    const int64_t begin = place / kPanelRun * kPanelRun;
    const int64_t run = std::min(kPanelRun, segment_.rows() - begin);
    const int64_t padded = round_up(dimension, width_);
    T* to = packed + begin * padded + (place - begin) * width_;
    const T* query = layer.query.rows.row(row);
    for (int64_t d = 0; d < dimension; d += width_, to += run * width_) {
      const int64_t count = std::min(width_, dimension - d);
      feature_rows<T>().scaled_copy(query + d, to, count, factor);
      std::fill_n(to + count, width_ - count, T(0));
    }
  }

 private:
  T* panel(int64_t row) const {
    return segment_.planes + (row - segment_.begin) / width_ * width_ * segment_.columns;
  }

  void leave_out(int64_t begin, int64_t end, int64_t left, int64_t right) {
    constexpr T kLeftOut = -std::numeric_limits<T>::infinity();  // exp gives 0
    for (int64_t row = begin; row < end; ++row) {
      const int64_t positive = problem.pairs.positive[row];
      if (left <= positive && positive < right) {
        sums(row).attraction = at(row, positive);
        at(row, positive) = kLeftOut;
      }
      for (const int64_t column : problem.pairs.excluded_of(row).within(left, right)) {
        at(row, column) = kLeftOut;
      }
    }
  }

  const PackedKeys<T>& keys_;
  const Segment<T>& segment_;
  const int64_t width_ = panels<T>().width;
  std::vector<RowSums<T>> sums_;
};

}  // namespace mim4dd
