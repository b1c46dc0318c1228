// No call and no branch in a loop, and reductions named to the compiler: so it may reorder them.
#include "logit_rows.h"

#include <limits>

#include "simd.h"

namespace mim4dd {

template <typename T>
MIM4DD_SIMD Extremes<T> extremes(const T* logits, int64_t n) {
  T low = std::numeric_limits<T>::infinity(), high = -low;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t j = 0; j < n; ++j) {
    low = logits[j] < low ? logits[j] : low;
    high = logits[j] > high ? logits[j] : high;
  }
  return {low, high, -std::numeric_limits<T>::infinity()};
}

template <typename T>
MIM4DD_SIMD Extremes<T>
labelled_extremes(const T* logits, const int32_t* labels, int32_t own, int64_t n) {
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
MIM4DD_SIMD void
scale_negatives(T* logits, const int32_t* labels, int32_t own, int64_t n, T factor) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] *= labels[j] == own ? T(1) : factor;
}

template <typename T>
MIM4DD_SIMD T exponentiate(T* logits, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    logits[j] = vector_exp(logits[j] - shift);
    sum += logits[j];
  }
  return sum;
}

template <typename T>
MIM4DD_SIMD Sums<T> labelled_exponentiate(
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
MIM4DD_SIMD T
positive_exp_sum(const T* logits, const int32_t* labels, int32_t own, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    sum += labels[j] == own ? vector_exp(logits[j] - shift) : T(0);
  }
  return sum;
}

template <typename T>
MIM4DD_SIMD void
subtract_positives(T* weights, const int32_t* labels, int32_t own, int64_t n, T amount) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) weights[j] -= labels[j] == own ? amount : T(0);
}

template <typename T>
MIM4DD_SIMD void subtract_positive_exps(
    T* weights,
    const T* logits,
    const int32_t* labels,
    int32_t own,
    int64_t n,
    T shift,
    T amount) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    weights[j] -= labels[j] == own ? amount * vector_exp(logits[j] - shift) : T(0);
  }
}

template <typename T>
MIM4DD_SIMD Sums<T>
binary_weights(T* logits, const int32_t* labels, int32_t own, int64_t n, T bias) {
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
MIM4DD_SIMD T weighted_sum(const T* weights, const T* values, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += weights[j] * values[j];
  return sum;
}

template <typename T>
MIM4DD_SIMD T positive_sum(const T* values, const int32_t* labels, int32_t own, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += labels[j] == own ? values[j] : T(0);
  return sum;
}

template <typename T>
MIM4DD_SIMD void
positive_weights(T* logits, const int32_t* labels, int32_t own, int64_t n, T shift, T amount) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T e = amount * vector_exp(logits[j] - shift);
    logits[j] = labels[j] == own ? e : T(0);
  }
}

template <typename T>
MIM4DD_SIMD void softmax_second_order(T* exps, T* tangents, int64_t n, T factor, T mean) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T p = factor * exps[j];
    exps[j] = p * (tangents[j] - mean);
    tangents[j] = p;
  }
}

template <typename T>
MIM4DD_SIMD void
softmax_second_order(T* exps, T* tangents, const T* y, int64_t n, T factor, T mean, T y_mean) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const T p = factor * exps[j];
    exps[j] = p * (tangents[j] - mean) - y[j] * (tangents[j] - y_mean);
    tangents[j] = p - y[j];
  }
}

template <typename T>
MIM4DD_SIMD T
binary_second_order(T* weights, T* tangents, const int32_t* labels, int32_t own, int64_t n, T g) {
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
MIM4DD_SIMD T exp_sum(const T* logits, int64_t n, T shift) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += vector_exp(logits[j] - shift);
  return sum;
}

template <typename T>
MIM4DD_SIMD void column_extremes(const T* logits, int64_t n, T* lowest, T* highest) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    lowest[j] = logits[j] < lowest[j] ? logits[j] : lowest[j];
    highest[j] = logits[j] > highest[j] ? logits[j] : highest[j];
  }
}

template <typename T>
MIM4DD_SIMD void add_columns(const T* exps, int64_t n, T* sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sums[j] += exps[j];
}

template <typename T>
MIM4DD_SIMD void add_column_exps(const T* logits, int64_t n, const T* shifts, T* sums) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) sums[j] += vector_exp(logits[j] - shifts[j]);
}

template <typename T>
MIM4DD_SIMD void symmetric_weights(
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
MIM4DD_SIMD void symmetric_weights(T* logits, int64_t n, T factor, const T* column_factors) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) logits[j] = (factor + column_factors[j]) * vector_exp(logits[j]);
}

#define MIM4DD_INSTANTIATE(T)                                                                 \
  template Extremes<T> extremes(const T*, int64_t);                                           \
  template Extremes<T> labelled_extremes(const T*, const int32_t*, int32_t, int64_t);         \
  template void scale_negatives(T*, const int32_t*, int32_t, int64_t, T);                     \
  template T exponentiate(T*, int64_t, T);                                                    \
  template Sums<T> labelled_exponentiate(T*, const int32_t*, int32_t, int64_t, T, bool);      \
  template T positive_exp_sum(const T*, const int32_t*, int32_t, int64_t, T);                 \
  template void subtract_positives(T*, const int32_t*, int32_t, int64_t, T);                  \
  template void subtract_positive_exps(T*, const T*, const int32_t*, int32_t, int64_t, T, T); \
  template Sums<T> binary_weights(T*, const int32_t*, int32_t, int64_t, T);                   \
  template T weighted_sum(const T*, const T*, int64_t);                                       \
  template T positive_sum(const T*, const int32_t*, int32_t, int64_t);                        \
  template void positive_weights(T*, const int32_t*, int32_t, int64_t, T, T);                 \
  template void softmax_second_order(T*, T*, int64_t, T, T);                                  \
  template void softmax_second_order(T*, T*, const T*, int64_t, T, T, T);                     \
  template T binary_second_order(T*, T*, const int32_t*, int32_t, int64_t, T);                \
  template T exp_sum(const T*, int64_t, T);                                                   \
  template void column_extremes(const T*, int64_t, T*, T*);                                   \
  template void add_columns(const T*, int64_t, T*);                                           \
  template void add_column_exps(const T*, int64_t, const T*, T*);                             \
  template void symmetric_weights(T*, int64_t, T, T, const T*, const T*);                     \
  template void symmetric_weights(T*, int64_t, T, const T*);

MIM4DD_INSTANTIATE(float)
MIM4DD_INSTANTIATE(double)

}  // namespace mim4dd
