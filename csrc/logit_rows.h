// Passes over a run of logits of one query: each reads it once, some write it. A label is that of a
// key, `own` that of the query; the keys with that label are its positives.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mim4dd {

template <typename T>
struct Extremes {
  T lowest, negative, positive;  // of all; the highest of the negatives; of the positives
};

template <typename T>
struct Sums {
  T negative, positive;  // sums of exp
  T attraction;          // sum of the positives' logits
};

// Of one row, for weigh_inside.
template <typename T>
struct InsideWeights {
  T factor, own_factor, amount, shift, inverse;
};

template <typename T>
struct LogitRows {
  // The lowest and highest logit; the highest counts as a negative's. NaN is ignored.
  Extremes<T> (*extremes)(const T* logits, int64_t n);
  Extremes<T> (*labelled_extremes)(const T* logits, const int32_t* labels, int32_t own, int64_t n);

  // logits of negatives *= factor.
  void (*scale_negatives)(T* logits, const int32_t* labels, int32_t own, int64_t n, T factor);

  // logits := exp(logits - shift), and their sum.
  T (*exponentiate)(T* logits, int64_t n, T shift);

  // The same with both sums apart, and that of logit - shift over positives. `drop` writes 0 for
  // them.
  Sums<T> (*labelled_exponentiate)(
      T* logits,
      const int32_t* labels,
      int32_t own,
      int64_t n,
      T shift,
      bool drop);

  // Sum of exp(logit - shift) over the positives.
  T (*positive_exp_sum)(const T* logits, const int32_t* labels, int32_t own, int64_t n, T shift);

  // weights of positives -= amount.
  void (*subtract_positives)(T* weights, const int32_t* labels, int32_t own, int64_t n, T amount);

  // weights of negatives *= factor, of positives := own_factor·weight - amount·y, where y is
  // exp(logit - shift)·inverse: at most 1, though `amount` and `inverse` may be close to infinite.
  void (*weigh_inside)(
      T* weights,
      const T* logits,
      const int32_t* labels,
      int32_t own,
      int64_t n,
      InsideWeights<T> w);

  // Binary critic h = sigmoid(logit + bias): logits := h - [positive]. Sums: `negative` of the
  // weights, `attraction` of the losses; both NaN if a logit is not finite.
  Sums<T> (*binary_weights)(T* logits, const int32_t* labels, int32_t own, int64_t n, T bias);

  // sum of weights·values.
  T (*weighted_sum)(const T* weights, const T* values, int64_t n);

  // The same at negatives.
  T (*negative_weighted_sum)(
      const T* weights,
      const T* values,
      const int32_t* labels,
      int32_t own,
      int64_t n);

  // sum of the values at positives.
  T (*positive_sum)(const T* values, const int32_t* labels, int32_t own, int64_t n);

  // logits := amount·exp(logit - shift) at positives, 0 elsewhere.
  void (*positive_weights)(
      T* logits,
      const int32_t* labels,
      int32_t own,
      int64_t n,
      T shift,
      T amount);

  // For p = factor·exps and the directional derivative of the logits, the weights of the second
  // order: exps := p (tangents - mean), tangents := p.
  void (*softmax_second_order)(T* exps, T* tangents, int64_t n, T factor, T mean);

  // The same with p = own_factor·exps at positives, and less attractions y there:
  // exps := p (tangents - mean) - y (tangents - y_mean), tangents := p - y.
  void (*softmax_second_order_inside)(
      T* exps,
      T* tangents,
      const T* y,
      const int32_t* labels,
      int32_t own,
      int64_t n,
      T factor,
      T own_factor,
      T mean,
      T y_mean);

  // Binary critic: weights h - [positive] := g h (1 - h) tangents, tangents := g (h - [positive]).
  // Returns the sum of the first.
  T (*binary_second_order)(
      T* weights,
      T* tangents,
      const int32_t* labels,
      int32_t own,
      int64_t n,
      T g);

  // sum of exp(logit - shift).
  T (*exp_sum)(const T* logits, int64_t n, T shift);

  // By column, over one more row of logits: the lowest and the highest so far.
  void (*column_extremes)(const T* logits, int64_t n, T* lowest, T* highest);

  // By column, over one more row: sums += exps; sums += exp(logits - shifts).
  void (*add_columns)(const T* exps, int64_t n, T* sums);
  void (*add_column_exps)(const T* logits, int64_t n, const T* shifts, T* sums);

  // Weights of both directions of one row: logits := factor·exp(logit - shift) by row and by
  // column.
  void (*symmetric_weights)(
      T* logits,
      int64_t n,
      T factor,
      T shift,
      const T* column_factors,
      const T* column_shifts);

  // The same where no shift is needed: logits := (factor + column factor)·exp(logit).
  void (*bounded_symmetric_weights)(T* logits, int64_t n, T factor, const T* column_factors);
};

template <typename T>
const LogitRows<T>& logit_rows() {
  return kernels<LogitRows<T>>();
}

}  // namespace mim4dd
