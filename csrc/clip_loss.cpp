// The symmetric loss of CLIP on a CPU: both directions from one pass over the logits, and both of
// their gradients from another. Pair i is query i with key i.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <numeric>
#include <optional>
#include <tuple>

#include "contrastive_features.h"
#include "dispatch.h"
#include "logit_rows.h"
#include "wave.h"

namespace mim4dd {
namespace {

// One direction: what the softmax of each row, or each column, comes to.
template <typename T>
struct Direction {
  explicit Direction(int64_t n)
      : lowest(n, std::numeric_limits<T>::infinity()),
        shift(n, -std::numeric_limits<T>::infinity()),
        negative(n, T(0)) {}

  std::vector<T> lowest, shift;  // of the logits but that of the pair; the highest, at first
  std::vector<T> negative;       // sum of exp(logit - shift) without that of the pair
};

// One direction, as the forward pass gives it to the backward: (N) each. The log-sum-exp is in two,
// the shift and the sum of exp(logit - shift), since their sum has no digits for a large shift.
template <typename T>
struct Softmax {
  T *loss, *shift, *sum;
};

// The same in the backward, with the upstream gradient of the loss.
template <typename T>
struct KnownSoftmax {
  const T *loss, *shift, *sum, *grad_loss;
};

// The logit of a pair while its block is summed: exp gives 0, and no extreme changes.
template <typename T>
constexpr T kLeftOut = std::numeric_limits<T>::lowest();

template <typename T>
class ClipPairs {
 public:
  ClipPairs(const Tensor& query, const Tensor& key, T logit_scale, bool normalize)
      : n_(query.size(0)),
        every_(n_),
        // A negative temperature would give a finite loss that means nothing.
        scale_(
            logit_scale > 0 && std::isfinite(logit_scale) ? logit_scale
                                                          : std::numeric_limits<T>::quiet_NaN()) {
    std::iota(every_.begin(), every_.end(), 0);
    const Normalize how = normalize ? Normalize::kCopy : Normalize::kNot;
    query_.emplace(make_features<T>(query, every_, how));
    key_.emplace(make_features<T>(key, every_, how));
    bounded_ = query_->longest * key_->longest * std::abs(double(scale_)) <= kSafeLogit<T>;
  }

  void forward(const Softmax<T>& by_query, const Softmax<T>& by_key) {
    Direction<T> rows(n_), columns(n_);
    std::vector<T> pair(n_);
    run_waves<T>(
        n_, n_, {0}, 1,
        [&](const Segment<T>& segment, int64_t first, int64_t last, int64_t width) {
          sum_rows(segment, first, last, width, rows, pair);
        },
        [&](const Segment<T>& segment, int64_t left, int64_t right) {
          sum_columns(segment, left, right, columns);
        });
    finish(rows, pair, by_query);
    finish(columns, pair, by_key);
  }

  // Gradients of query, key and logit_scale for any upstream gradient of both losses.
  std::vector<Tensor> backward(const KnownSoftmax<T>& by_query, const KnownSoftmax<T>& by_key) {
    const Tensor grad_query = empty_matrix<T>(n_, query_->dimension());
    const Tensor grad_key = empty_matrix<T>(n_, query_->dimension());
    const Matrix<T> of_query = as_matrix<T>(grad_query), of_key = as_matrix<T>(grad_key);
    std::vector<T> column_factors(n_), scale_terms(n_);
    for (int64_t j = 0; j < n_; ++j) column_factors[j] = by_key.grad_loss[j] / by_key.sum[j];
    run_waves<T>(
        n_, n_, {0}, 1,
        [&](const Segment<T>& segment, int64_t first, int64_t last, int64_t width) {
          const Matrix<T> gradient = of_query.middle_rows(first, last);
          for (int64_t left = 0; left < n_; left += width) {
            const int64_t right = std::min(n_, left + width);
            const Matrix<T> block = form_logits(segment, first, last, left, right);
            for (int64_t row = first; row < last; ++row) {
              T* logits = block.row(row - first);
              const T g = by_query.grad_loss[row], factor = g / by_query.sum[row];
              const T* of_columns = column_factors.data() + left;
              if (bounded_) {
                logit_rows<T>().bounded_symmetric_weights(logits, right - left, factor, of_columns);
              } else {
                logit_rows<T>().symmetric_weights(
                    logits, right - left, factor, by_query.shift[row], of_columns,
                    by_key.shift + left);
              }
              if (left <= row && row < right) {
                // p - 1 is expm1 of minus the loss: at p = 1 the difference has no digits left.
                logits[row - left] = g * std::expm1(-by_query.loss[row]) +
                                     by_key.grad_loss[row] * std::expm1(-by_key.loss[row]);
              }
            }
            multiply(gradient, block, key_->rows.middle_rows(left, right), left > 0, scale_);
          }
          for (int64_t row = first; row < last; ++row) {
            scale_terms[row] = feature_rows<T>().dot(
                                   of_query.row(row), query_->rows.row(row), query_->dimension()) /
                               scale_;
          }
        },
        [&](const Segment<T>& segment, int64_t left, int64_t right) {
          multiply(
              of_key.middle_rows(left, right),
              segment.block(0, segment.begin, segment.end, left, right).transposed(),
              query_->rows.middle_rows(segment.begin, segment.end), segment.begin > 0, scale_);
        });
    Tensor grad_scale = torch::stable::empty({}, scalar_type_of<T>());
    *grad_scale.mutable_data_ptr<T>() =
        static_cast<T>(std::accumulate(scale_terms.begin(), scale_terms.end(), 0.0));
    return {
        gradient_of_input(*query_, every_, grad_query, true),
        gradient_of_input(*key_, every_, grad_key, true), grad_scale};
  }

 private:
  Matrix<T> form_logits(
      const Segment<T>& segment,
      int64_t first,
      int64_t last,
      int64_t left,
      int64_t right) const {
    const Matrix<T> block = segment.block(0, first, last, left, right);
    multiply(
        block, query_->rows.middle_rows(first, last),
        key_->rows.middle_rows(left, right).transposed(), false, scale_);
    return block;
  }

  void sum_rows(
      const Segment<T>& segment,
      int64_t first,
      int64_t last,
      int64_t width,
      Direction<T>& rows,
      std::vector<T>& pair) const {
    for (int64_t left = 0; left < n_; left += width) {
      const int64_t right = std::min(n_, left + width);
      const Matrix<T> block = form_logits(segment, first, last, left, right);
      for (int64_t row = first; row < last; ++row) {
        T* logits = block.row(row - first);
        if (left <= row && row < right) {
          pair[row] = logits[row - left];
          logits[row - left] = kLeftOut<T>;
        }
        if (bounded_) {
          rows.negative[row] += logit_rows<T>().exponentiate(logits, right - left, T(0));
        } else {
          const Extremes<T> found = logit_rows<T>().extremes(logits, right - left);
          rows.lowest[row] = std::min(rows.lowest[row], found.lowest);
          rows.shift[row] = std::max(rows.shift[row], found.negative);
        }
      }
    }
    if (bounded_) return;
    for (int64_t row = first; row < last; ++row) {
      const T shift = usable_shift(rows.lowest[row], rows.shift[row]);
      rows.shift[row] = shift;
      for (int64_t left = 0; left < n_; left += width) {
        const int64_t right = std::min(n_, left + width);
        const T* logits = segment.block(0, first, last, left, right).row(row - first);
        rows.negative[row] += logit_rows<T>().exp_sum(logits, right - left, shift);
      }
    }
  }

  // Of one more wave of rows; sums of earlier ones are brought to the new shift.
  void sum_columns(const Segment<T>& segment, int64_t left, int64_t right, Direction<T>& columns)
      const {
    const Matrix<T> block = segment.block(0, segment.begin, segment.end, left, right);
    const int64_t n = right - left;
    T *sums = columns.negative.data() + left, *shifts = columns.shift.data() + left;
    if (bounded_) {
      for (int64_t i = 0; i < block.rows; ++i) logit_rows<T>().add_columns(block.row(i), n, sums);
      return;
    }
    const std::vector<T> before(shifts, shifts + n);
    for (int64_t i = 0; i < block.rows; ++i) {
      logit_rows<T>().column_extremes(block.row(i), n, columns.lowest.data() + left, shifts);
    }
    for (int64_t j = 0; j < n; ++j) {
      shifts[j] = usable_shift(columns.lowest[left + j], shifts[j]);
      if (sums[j] != 0) sums[j] *= std::exp(before[j] - shifts[j]);
    }
    for (int64_t i = 0; i < block.rows; ++i)
      logit_rows<T>().add_column_exps(block.row(i), n, shifts, sums);
  }

  // The highest logit, or NaN if one is infinite: exp(-inf) = 0 would hide it behind a finite loss.
  static T usable_shift(T lowest, T highest) {
    const bool infinite = std::isinf(lowest) && lowest < 0;
    if (infinite || highest == std::numeric_limits<T>::infinity()) {
      return std::numeric_limits<T>::quiet_NaN();
    }
    return std::isinf(highest) ? kLeftOut<T> : highest;
  }

  void finish(const Direction<T>& direction, const std::vector<T>& pair, const Softmax<T>& softmax)
      const {
    for (int64_t i = 0; i < n_; ++i) {
      T shift = bounded_ ? T(0) : direction.shift[i], negative = direction.negative[i];
      if (pair[i] > shift && !bounded_) {
        negative *= std::exp(shift - pair[i]);
        shift = pair[i];
      }
      const T positive = std::exp(pair[i] - shift), log_sum = std::log(negative + positive);
      softmax.shift[i] = shift;
      softmax.sum[i] = negative + positive;
      // Near p = 1 the logarithm of the sum has no digits left.
      softmax.loss[i] =
          positive > negative ? std::log1p(negative / positive) : log_sum - (pair[i] - shift);
      if (!std::isfinite(pair[i]))
        softmax.loss[i] = softmax.sum[i] = std::numeric_limits<T>::quiet_NaN();
    }
  }

  const int64_t n_;
  std::vector<int64_t> every_;
  const T scale_;
  std::optional<Features<T>> query_, key_;
  bool bounded_;
};

void check(const Tensor& query, const Tensor& key, const Tensor& logit_scale) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = query.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      query.dim() == 2 && key.dim() == 2 && query.size(0) == key.size(0) &&
          query.size(1) == key.size(1) && query.numel() > 0 && key.scalar_type() == dtype,
      "clip_loss: query and key must be (N, D) of one dtype");
  STD_TORCH_CHECK(
      logit_scale.numel() == 1 && logit_scale.scalar_type() == wide,
      "clip_loss: logit_scale must be one number, float32 or wider");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
clip_loss_cpu(Tensor query, Tensor key, Tensor logit_scale, bool normalize) {
  check(query, key, logit_scale);
  std::vector<Tensor> out;
  for (int i = 0; i < 6; ++i) out.push_back(torch::stable::new_empty(logit_scale, {query.size(0)}));
  MIM4DD_DISPATCH_FLOATING(logit_scale.scalar_type(), "clip_loss", [&] {
    ClipPairs<scalar_t> pairs(query, key, *logit_scale.const_data_ptr<scalar_t>(), normalize);
    const auto at = [&](int i) { return out[i].mutable_data_ptr<scalar_t>(); };
    pairs.forward({at(0), at(2), at(4)}, {at(1), at(3), at(5)});
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

std::tuple<Tensor, Tensor, Tensor> clip_loss_bwd_cpu(
    Tensor query,
    Tensor key,
    Tensor logit_scale,
    bool normalize,
    Tensor query_loss,
    Tensor key_loss,
    Tensor query_shift,
    Tensor key_shift,
    Tensor query_sum,
    Tensor key_sum,
    Tensor grad_query_loss,
    Tensor grad_key_loss) {
  check(query, key, logit_scale);
  std::vector<Tensor> result;
  MIM4DD_DISPATCH_FLOATING(logit_scale.scalar_type(), "clip_loss_bwd", [&] {
    std::vector<Tensor> rows;
    for (const Tensor& each :
         {query_loss, key_loss, query_shift, key_shift, query_sum, key_sum, grad_query_loss,
          grad_key_loss}) {
      STD_TORCH_CHECK(each.numel() == query.size(0), "clip_loss_bwd: losses must be (N,)");
      rows.push_back(as_type<scalar_t>(each));
    }
    const auto at = [&](int i) { return rows[i].const_data_ptr<scalar_t>(); };
    ClipPairs<scalar_t> pairs(query, key, *logit_scale.const_data_ptr<scalar_t>(), normalize);
    result = pairs.backward({at(0), at(2), at(4), at(6)}, {at(1), at(3), at(5), at(7)});
  });
  return {result[0], result[1], result[2]};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("clip_loss", TORCH_BOX(&clip_loss_cpu));
  m.impl("clip_loss_bwd", TORCH_BOX(&clip_loss_bwd_cpu));
}

}  // namespace mim4dd
