// From the logits of a tile to exp(logits - shift), with what each row sums to.
#pragma once

#include <limits>

#include "contrastive.h"
#include "logit_rows.h"
#include "simd.h"

namespace mim4dd {

// What one row of logits comes to. The binary critic uses `negative` for the sum of the weights and
// `attraction` for the loss.
template <typename T>
struct RowSums {
  T lowest = std::numeric_limits<T>::infinity();
  T highest = -lowest, highest_positive = -lowest;
  T shift = 0, positive_shift = 0;
  T negative = 0, positive = 0;  // sums of exp(logit - shift) over the denominator
  T attraction = 0;              // sum of logit - shift over the positives
  T own_positive = 0;  // variant "in": sum of exp(logit - positive_shift) over the positives

  T denominator() const { return negative + positive; }
  // Of a known log-sum-exp; that of no key at all is infinite.
  void set_shift(T lse) { shift = std::isinf(lse) ? T(0) : lse; }
  // By index, `attraction` is the logit of the positive, which was left out of all sums.
  void add_positive() {
    attraction -= shift;
    positive = vector_exp(attraction);
  }
};

// Call run(begin, end) for what is left of [left, right), from left on, without the excluded
// columns and one more.
template <typename Run>
void for_runs(
    int64_t left,
    int64_t right,
    const Columns& excluded,
    int64_t one_more,
    const Run& run) {
  int64_t begin = left;
  const auto skip = [&](int64_t column) {
    if (column < begin || column >= right) return;  // elsewhere, or skipped already
    if (begin < column) run(begin - left, column - left);
    begin = column + 1;
  };
  for (const int64_t column : excluded.within(left, right)) {
    if (one_more < column) skip(one_more);
    skip(column);
  }
  skip(one_more);
  if (begin < right) run(begin - left, right - left);
}

// The logits of rows [first, last) of a segment against all columns, width columns at a time.
template <typename T>
class Tile {
 public:
  static constexpr int kWeights = 0;  // planes of the segment: what the tile becomes,
  static constexpr int kLogits =
      1;  // and a copy of the logits for variant "in", the only one to need it

  Tile(const Problem<T>& of, const Segment<T>& segment, int64_t begin, int64_t end, int64_t width)
      : problem(of),
        layer(of.layers[segment.layer]),
        first(begin),
        last(end),
        segment_(segment),
        width_(width),
        sums_(end - begin) {}

  const Problem<T>& problem;
  const Layer<T>& layer;
  const int64_t first, last;

  RowSums<T>& sums(int64_t row) { return sums_[row - first]; }

  Matrix<T> block(int plane, int64_t left, int64_t right) const {
    return segment_.block(plane, first, last, left, right);
  }

  T* at(int plane, int64_t row, int64_t column) const {
    const int64_t left = column / width_ * width_;
    return block(plane, left, std::min(segment_.columns, left + width_)).row(row - first) + column -
           left;
  }

  // body(left, right) for every run of columns that lies together.
  template <typename Body>
  void for_blocks(const Body& body) const {
    for (int64_t left = 0; left < segment_.columns; left += width_) {
      body(left, std::min(segment_.columns, left + width_));
    }
  }

  // body(values, labels, n) for every run of the row's keys: without those it leaves out, and by
  // index without its positive. Entries of the block start at `values`.
  template <typename Body>
  void for_keys(int64_t row, T* values, int64_t left, int64_t right, const Body& body) const {
    const Pairs& pairs = problem.pairs;
    const int64_t positive = problem.by_index() ? pairs.positive[row] : kNone;
    for_runs(left, right, pairs.excluded_of(row), positive, [&](int64_t begin, int64_t end) {
      body(values + begin, pairs.column_label.data() + left + begin, end - begin);
    });
  }

  // Form exp(logits - shift), for the binary critic the weights, and the sums of every row. Where
  // `lse` of the rows is known from a forward pass, no maximum is looked for. Where one pass is
  // enough, formed(left, right) is called on every block while it is in cache; returned is whether
  // it was.
  template <typename Formed>
  bool exponentiate(const T* lse, const Formed& formed) {
    const Kind kind = problem.critic.kind;
    const bool bounded = problem.bounded(layer);
    const bool known = lse != nullptr && kind != Kind::kIn;
    for (int64_t row = first; row < last && known; ++row) {
      sums(row).set_shift(lse[problem.pairs.queries[row]]);
    }
    const bool one_pass = bounded || known || kind == Kind::kNce;
    for_blocks([&](int64_t left, int64_t right) {
      form_logits(left, right);
      if (one_pass) {
        exponentiate_block(left, right);
        formed(left, right);
      } else {
        find_extremes(left, right);
      }
    });
    if (!one_pass) {
      for (RowSums<T>& row_sums : sums_) choose_shift(row_sums);
      for_blocks([&](int64_t left, int64_t right) { exponentiate_block(left, right); });
    }
    for (int64_t row = first; row < last && problem.by_index(); ++row) {
      if (problem.pairs.positive[row] != kNone) sums(row).add_positive();
    }
    return one_pass;
  }

  void exponentiate(const T* lse) {
    exponentiate(lse, [](int64_t, int64_t) {});
  }

  // Multiply by what the keys lack.
  void scale_columns(int64_t left, int64_t right) const {
    if (layer.key.factors.empty()) return;
    const Matrix<T> values = block(kWeights, left, right);
    for (int64_t row = 0; row < values.rows; ++row) {
      feature_rows<T>().multiply_by(values.row(row), layer.key.factors.data() + left, right - left);
    }
  }

  void clear_excluded(int64_t row, T* values, int64_t left, int64_t right) const {
    for (const int64_t column : problem.pairs.excluded_of(row).within(left, right)) {
      values[column - left] = 0;
    }
  }

  // What for_keys leaves out holds logits: make it 0.
  void clear_left_out(int64_t left, int64_t right) const {
    for (int64_t row = first; row < last; ++row) {
      T* values = block(kWeights, left, right).row(row - first);
      const int64_t positive = problem.by_index() ? problem.pairs.positive[row] : kNone;
      clear_excluded(row, values, left, right);
      if (left <= positive && positive < right) values[positive - left] = 0;
    }
  }

 private:
  void form_logits(int64_t left, int64_t right) {
    const Matrix<T> logits = block(kWeights, left, right);
    multiply(
        logits, layer.query.rows.middle_rows(first, last),
        layer.key.rows.middle_rows(left, right).transposed(), false, problem.logit_scale);
    scale_columns(left, right);
    if (problem.critic.hardness != 0) {
      const T factor = 1 + T(problem.critic.hardness) / problem.logit_scale;
      for (int64_t row = first; row < last; ++row) {
        logit_rows<T>().scale_negatives(
            logits.row(row - first), problem.pairs.column_label.data() + left,
            problem.pairs.row_label[row], right - left, factor);
      }
    }
    if (problem.by_index()) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t column = problem.pairs.positive[row];
        if (left <= column && column < right) {
          sums(row).attraction = logits.row(row - first)[column - left];
        }
      }
    }
    if (problem.critic.kind == Kind::kIn) {
      std::copy_n(logits.data, logits.rows * logits.columns, block(kLogits, left, right).data);
    }
  }

  void find_extremes(int64_t left, int64_t right) {
    for (int64_t row = first; row < last; ++row) {
      RowSums<T>& of_row = sums(row);
      T* logits = block(kWeights, left, right).row(row - first);
      for_keys(row, logits, left, right, [&](const T* values, const int32_t* labels, int64_t n) {
        const Extremes<T> found = problem.by_index()
                                      ? logit_rows<T>().extremes(values, n)
                                      : logit_rows<T>().labelled_extremes(
                                            values, labels, problem.pairs.row_label[row], n);
        of_row.lowest = std::min(of_row.lowest, found.lowest);
        of_row.highest = std::max(of_row.highest, found.negative);
        of_row.highest_positive = std::max(of_row.highest_positive, found.positive);
      });
      if (problem.by_index() && problem.pairs.positive[row] != kNone) {
        of_row.lowest = std::min(of_row.lowest, of_row.attraction);
        of_row.highest_positive = of_row.attraction;
      }
    }
  }

  void choose_shift(RowSums<T>& of_row) const {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    of_row.positive_shift = std::isinf(of_row.highest_positive) ? T(0) : of_row.highest_positive;
    if (!problem.critic.decoupled)
      of_row.highest = std::max(of_row.highest, of_row.highest_positive);
    of_row.shift = std::isinf(of_row.highest) ? T(0) : of_row.highest;
    // exp(-inf) = 0 would hide an infinite key behind a finite loss.
    const bool infinite = of_row.lowest == -kInfinity || of_row.highest == kInfinity ||
                          of_row.highest_positive == kInfinity;
    if (infinite) of_row.shift = std::numeric_limits<T>::quiet_NaN();
  }

  void exponentiate_block(int64_t left, int64_t right) {
    for (int64_t row = first; row < last; ++row) {
      RowSums<T>& of_row = sums(row);
      const int32_t own = problem.pairs.row_label[row];
      T* logits = block(kWeights, left, right).row(row - first);
      for_keys(row, logits, left, right, [&](T* values, const int32_t* labels, int64_t n) {
        if (problem.by_index()) {
          of_row.negative += logit_rows<T>().exponentiate(values, n, of_row.shift);
          return;
        }
        if (problem.critic.kind == Kind::kNce) {
          const Sums<T> found =
              logit_rows<T>().binary_weights(values, labels, own, n, problem.bias_of(row));
          of_row.attraction += found.attraction;
          of_row.negative += found.negative;
          return;
        }
        const bool drop = problem.critic.decoupled;
        const Sums<T> found =
            logit_rows<T>().labelled_exponentiate(values, labels, own, n, of_row.shift, drop);
        of_row.negative += found.negative;
        of_row.attraction += found.attraction;
        if (!drop) of_row.positive += found.positive;
      });
      if (problem.critic.kind == Kind::kIn) {
        T* copy = block(kLogits, left, right).row(row - first);
        for_keys(row, copy, left, right, [&](const T* values, const int32_t* labels, int64_t n) {
          of_row.own_positive +=
              logit_rows<T>().positive_exp_sum(values, labels, own, n, of_row.positive_shift);
        });
      }
    }
  }

  const Segment<T>& segment_;
  const int64_t width_;
  std::vector<RowSums<T>> sums_;
};

}  // namespace mim4dd
