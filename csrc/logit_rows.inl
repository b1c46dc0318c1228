// No call and no branch in a loop, and reductions named to the compiler: so it may reorder them.
#include <limits>

#include "logit_rows.h"
#include "simd.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename T>
Extremes<T> extremes(const T* logits, int64_t n) {
  T low = std::numeric_limits<T>::infinity(), high = -low;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t j = 0; j < n; ++j) {
    low = logits[j] < low ? logits[j] : low;
    high = logits[j] > high ? logits[j] : high;
  }
  return {low, high, -std::numeric_limits<T>::infinity()};
}

template <typename T>
Extremes<T> labelled_extremes(const T* logits, const int32_t* labels, int32_t own, int64_t n) {
  const T infinity = std::numeric_limits<T>::infinity();
  T low = infinity, negative = -infinity, positive = -infinity;
#pragma omp simd reduction(min : low) reduction(max : negative, positive)
  for (int64_t j = 0; j < n; ++j) {
    low = logits[j] < low ? logits[j] : low;
    const T as_negative = labels[j] == own ? -infinity : logits[j];
    const T as_positive = labels[j] == own ? logits[j] : -infinity;
    negative = as_negative > negative ? as_negative : negative;
    positive = as_positive > positive ? as_positive : positive;
  }
  return {low, negative, positive};
}

template <typename T>
void scale_negatives(T* logits, const int32_t* labels, int32_t own, int64_t n, T factor) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] *= labels[j] == own ? T(1) : factor;
}

template <typename T>
T exponentiate(T* logits, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    logits[j] = vector_exp(logits[j] - shift);
    sum += logits[j];
  }
  return sum;
}

template <typename T>
Sums<T> labelled_exponentiate(
    T* logits,
    const int32_t* labels,
    int32_t own,
    int64_t n,
    T shift,
    bool drop) {
  const T kept = drop ? T(0) : T(1);
  T negative = 0, positive = 0, attraction = 0;
#pragma omp simd reduction(+ : negative, positive, attraction)
  for (int64_t j = 0; j < n; ++j) {
    const T logit = logits[j] - shift;
    const T e = vector_exp(logit);
    const bool is_positive = labels[j] == own;
    negative += is_positive ? T(0) : e;
    positive += is_positive ? e : T(0);
    attraction += is_positive ? logit : T(0);
    logits[j] = is_positive && kept == T(0) ? T(0) : e;
  }
  return {negative, positive, attraction};
}

template <typename T>
T positive_exp_sum(const T* logits, const int32_t* labels, int32_t own, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += labels[j] == own ? vector_exp(logits[j] - shift) : T(0);
  }
  return sum;
}

template <typename T>
void subtract_positives(T* weights, const int32_t* labels, int32_t own, int64_t n, T amount) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) weights[j] -= labels[j] == own ? amount : T(0);
}

template <typename T>
void weigh_inside(
    T* weights,
    const T* logits,
    const int32_t* labels,
    int32_t own,
    int64_t n,
    InsideWeights<T> w) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T y = vector_exp(logits[j] - w.shift) * w.inverse;
    weights[j] =
        labels[j] == own ? w.own_factor * weights[j] - w.amount * y : w.factor * weights[j];
  }
}

template <typename T>
Sums<T> binary_weights(T* logits, const int32_t* labels, int32_t own, int64_t n, T bias) {
  T loss = 0, sum = 0;
#pragma omp simd reduction(+ : loss, sum)
  for (int64_t j = 0; j < n; ++j) {
    const bool is_positive = labels[j] == own;
    // The logit of the wrong answer: the loss is softplus of it, the weight ± its sigmoid.
    const T wrong = is_positive ? -(logits[j] + bias) : logits[j] + bias;
    const T size = wrong < 0 ? -wrong : wrong;
    const T e = vector_exp(-size);
    const T sigmoid = (wrong < 0 ? e : T(1)) / (T(1) + e);
    // size * 0: an infinite logit has a finite loss on its right side, and shall have none.
    loss += (wrong > 0 ? wrong : T(0)) + vector_log1p(e) + size * T(0);
    logits[j] = is_positive ? -sigmoid : sigmoid;
    sum += logits[j];
  }
  return {sum + loss * T(0), T(0), loss};
}

template <typename T>
T weighted_sum(const T* weights, const T* values, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += weights[j] * values[j];
  return sum;
}

template <typename T>
T negative_weighted_sum(
    const T* weights,
    const T* values,
    const int32_t* labels,
    int32_t own,
    int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += labels[j] == own ? T(0) : weights[j] * values[j];
  return sum;
}

template <typename T>
T positive_sum(const T* values, const int32_t* labels, int32_t own, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += labels[j] == own ? values[j] : T(0);
  return sum;
}

template <typename T>
void positive_weights(T* logits, const int32_t* labels, int32_t own, int64_t n, T shift, T amount) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T e = amount * vector_exp(logits[j] - shift);
    logits[j] = labels[j] == own ? e : T(0);
  }
}

template <typename T>
void softmax_second_order(T* exps, T* tangents, int64_t n, T factor, T mean) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T p = factor * exps[j];
    exps[j] = p * (tangents[j] - mean);
    tangents[j] = p;
  }
}

template <typename T>
void softmax_second_order_inside(
    T* exps,
    T* tangents,
    const T* y,
    const int32_t* labels,
    int32_t own,
    int64_t n,
    T factor,
    T own_factor,
    T mean,
    T y_mean) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T p = (labels[j] == own ? own_factor : factor) * exps[j];
    exps[j] = p * (tangents[j] - mean) - y[j] * (tangents[j] - y_mean);
    tangents[j] = p - y[j];
  }
}

template <typename T>
T binary_second_order(T* weights, T* tangents, const int32_t* labels, int32_t own, int64_t n, T g) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    const T w = weights[j];
    // h - 1 at positives, h elsewhere: h (1 - h) is -w (1 + w) or w (1 - w).
    const T slope = labels[j] == own ? -w * (T(1) + w) : w * (T(1) - w);
    weights[j] = g * slope * tangents[j];
    tangents[j] = g * w;
    sum += weights[j];
  }
  return sum;
}

template <typename T>
T exp_sum(const T* logits, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += vector_exp(logits[j] - shift);
  return sum;
}

template <typename T>
void column_extremes(const T* logits, int64_t n, T* lowest, T* highest) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    lowest[j] = logits[j] < lowest[j] ? logits[j] : lowest[j];
    highest[j] = logits[j] > highest[j] ? logits[j] : highest[j];
  }
}

template <typename T>
void add_columns(const T* exps, int64_t n, T* sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sums[j] += exps[j];
}

template <typename T>
void add_column_exps(const T* logits, int64_t n, const T* shifts, T* sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sums[j] += vector_exp(logits[j] - shifts[j]);
}

template <typename T>
void symmetric_weights(
    T* logits,
    int64_t n,
    T factor,
    T shift,
    const T* column_factors,
    const T* column_shifts) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    logits[j] = factor * vector_exp(logits[j] - shift) +
                column_factors[j] * vector_exp(logits[j] - column_shifts[j]);
  }
}

template <typename T>
void bounded_symmetric_weights(T* logits, int64_t n, T factor, const T* column_factors) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] = (factor + column_factors[j]) * vector_exp(logits[j]);
}

template <typename T>
constexpr LogitRows<T> kLogitRows{
    extremes<T>,
    labelled_extremes<T>,
    scale_negatives<T>,
    exponentiate<T>,
    labelled_exponentiate<T>,
    positive_exp_sum<T>,
    subtract_positives<T>,
    weigh_inside<T>,
    binary_weights<T>,
    weighted_sum<T>,
    negative_weighted_sum<T>,
    positive_sum<T>,
    positive_weights<T>,
    softmax_second_order<T>,
    softmax_second_order_inside<T>,
    binary_second_order<T>,
    exp_sum<T>,
    column_extremes<T>,
    add_columns<T>,
    add_column_exps<T>,
    symmetric_weights<T>,
    bounded_symmetric_weights<T>};

}  // namespace

MIM4DD_TABLE(LogitRows, float)
MIM4DD_TABLE(LogitRows, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
