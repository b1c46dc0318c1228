// The contrastive losses of all layers and their first derivatives, wave by wave.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "contrastive_panels.h"
#include "contrastive_tile.h"

namespace mim4dd {

template <typename T>
struct Outputs {
  T *loss = nullptr, *lse = nullptr;  // (L, N); null where only gradients are asked for
};

template <typename T>
T loss_of(const Problem<T>& problem, const RowSums<T>& sums, int64_t row) {
  if (problem.critic.kind == Kind::kNce) return sums.attraction;
  const T count = T(problem.pairs.num_positives[row]);
  const bool in = problem.critic.kind == Kind::kIn;
  // Near p = 1 the logarithm of the sum has no digits left.
  if ((in || problem.sole_positive(row) != kNone) && sums.positive > sums.negative) {
    const T loss = std::log1p(sums.negative / sums.positive);
    return in ? loss + std::log(count) : loss;
  }
  const T log_denominator = std::log(sums.denominator());
  if (in) {
    return log_denominator - std::log(sums.own_positive) + (sums.shift - sums.positive_shift) +
           std::log(count);
  }
  return log_denominator - sums.attraction / count;
}

template <typename T, typename AnyTile>
void write_outputs(AnyTile& tile, const Outputs<T>& outputs, int64_t layer_offset) {
  const Problem<T>& problem = tile.problem;
  for (int64_t row = tile.first; row < tile.last; ++row) {
    const RowSums<T>& sums = tile.sums(row);
    const int64_t query = problem.pairs.queries[row];
    const bool counts = problem.counts(row);
    const T loss = loss_of(problem, sums, row);
    // A NaN survives in a row that has no loss.
    const T none = problem.critic.kind == Kind::kNce ? sums.attraction * 0 : sums.denominator() * 0;
    outputs.loss[layer_offset + query] = counts ? loss : none;
    outputs.lse[layer_offset + query] =
        problem.critic.kind == Kind::kNce ? T(0) : sums.shift + std::log(sums.denominator());
  }
}

// The gradient weights of a row are W = factor·w. w is exps·exp(logits - shift), less `amount` at
// positives; at a sole positive it is `own`, for variant "in" own·exp(logits - shift) - amount·y.
template <typename T>
struct RowWeights {
  T factor, exps = 1, amount = 0, own = 0;
};

// W = (g + h) p - g y. At p = 1 the difference p - y has no digits left, but from the other keys.
template <typename T>
RowWeights<T>
row_weights(const Problem<T>& problem, const RowSums<T>& sums, int64_t row, T g, T h) {
  if (!problem.counts(row)) g = 0;
  if (problem.critic.kind == Kind::kNce) return {g + sums.negative * 0};
  const T denominator = sums.denominator();
  if (denominator == 0) return {T(0)};
  if (h == 0 && g == 0) return {denominator * 0};
  // Usually h = 0, and g can wait.
  const T part = h == 0 ? T(1) : g;
  RowWeights<T> result{(h == 0 ? g : T(1)) / denominator, h == 0 ? T(1) : g + h};
  if (problem.sole_positive(row) != kNone) {
    result.own = (h == 0 ? T(0) : h * sums.positive) - (g == 0 ? T(0) : part * sums.negative);
  } else if (problem.critic.kind == Kind::kIn) {
    // A positive has p = y·positive/denominator, so p - y = -y·negative/denominator.
    result.own = h;
    if (g != 0) result.amount = part * sums.negative;
  } else if (g != 0) {
    result.amount = part * denominator / T(problem.pairs.num_positives[row]);
  }
  return result;
}

// Turn a run of a row's exp(logits - shift) into w, formed before anything is rounded or summed.
template <typename T>
void weigh_run(Tile<T>& tile, int64_t row, const RowWeights<T>& w, int64_t left, int64_t right) {
  const Problem<T>& problem = tile.problem;
  const int32_t own = problem.pairs.row_label[row];
  T* weights = tile.block(tile.kWeights, left, right).row(row - tile.first);
  if (problem.critic.kind == Kind::kIn) {
    const RowSums<T>& sums = tile.sums(row);
    const InsideWeights<T> inside{
        w.exps, w.own, w.amount, sums.positive_shift, 1 / sums.own_positive};
    const T* copy = tile.block(tile.kLogits, left, right).row(row - tile.first);
    tile.for_keys(row, weights, left, right, [&](T* values, const int32_t* labels, int64_t n) {
      logit_rows<T>().weigh_inside(values, copy + (values - weights), labels, own, n, inside);
    });
  } else {
    if (w.exps != 1) feature_rows<T>().scale_row(weights, right - left, w.exps);
    if (w.amount != 0) {
      tile.for_keys(row, weights, left, right, [&](T* values, const int32_t* labels, int64_t n) {
        logit_rows<T>().subtract_positives(values, labels, own, n, w.amount);
      });
    }
  }
  tile.clear_excluded(row, weights, left, right);
  const int64_t positive = problem.sole_positive(row);
  if (left <= positive && positive < right) weights[positive - left] = w.own;
}

template <typename T>
class FirstOrder {
 public:
  FirstOrder(const Problem<T>& problem, int64_t num_queries, const Wanted& wanted)
      : problem_(problem), num_queries_(num_queries), wanted_(wanted) {
    const bool rows_wanted = wanted.query || wanted.logit_scale;
    for (const Layer<T>& layer : problem.layers) {
      const int64_t dimension = layer.query.dimension();
      if (rows_wanted) query_.push_back(empty_matrix<T>(problem.pairs.rows(), dimension));
      if (wanted.key) {
        key_.push_back(empty_matrix<T>(problem.pairs.columns(), dimension));
        scaled_query_.push_back(
            empty_matrix<T>(problem.pairs.rows(), round_up(dimension, kRowsTogether)));
      }
    }
    scale_terms_.resize(problem.layers.size() * problem.pairs.rows());
    bias_terms_.resize(scale_terms_.size());
  }

  void run(const Upstream<T>& upstream, const Outputs<T>& outputs) {
    const bool any = !query_.empty() || !key_.empty() || wanted_.bias;
    if (problem_.pairs.rows() == 0 || problem_.pairs.columns() == 0) {
      run_empty(outputs);
      return;
    }
    if (PanelTile<T>::serves(problem_, upstream.lse != nullptr)) {
      for (const Layer<T>& layer : problem_.layers)
        packed_.emplace_back(layer.key, !query_.empty());
    }
    const int planes = problem_.critic.kind == Kind::kIn ? 2 : 1;
    run_waves<T>(
        problem_.pairs.rows(), problem_.pairs.columns(), problem_.order(), planes,
        [&](const Segment<T>& segment, int64_t first, int64_t last, int64_t width) {
          const int64_t layer = segment.layer, offset = layer * num_queries_;
          const T* const known = upstream.lse == nullptr ? nullptr : upstream.lse + offset;
          if (!packed_.empty()) {
            PanelTile<T> tile(problem_, packed_[layer], segment, first, last);
            const Matrix<T> gradient = query_.empty() ? Matrix<T>{} : query_gradient(tile, layer);
            tile.exponentiate(known, query_.empty() ? nullptr : &gradient);
            if (outputs.loss != nullptr) write_outputs(tile, outputs, offset);
            if (any) weigh(tile, segment, upstream);
            return;
          }
          Tile<T> tile(problem_, segment, first, last, width);
          const bool summed = exponentiate(tile, layer, known);
          if (outputs.loss != nullptr) write_outputs(tile, outputs, offset);
          if (any) weigh(tile, layer, upstream, summed);
        },
        [&](const Segment<T>& segment, int64_t left, int64_t right) {
          if (!wanted_.key) return;
          if (!packed_.empty()) return multiply_columns(segment, left, right);
          const Matrix<T> gradient = as_matrix<T>(key_[segment.layer]);
          Matrix<T> queries =
              as_matrix<T>(scaled_query_[segment.layer]).middle_rows(segment.begin, segment.end);
          queries.columns = gradient.columns;  // without the padding of panels
          multiply(
              gradient.middle_rows(left, right),
              segment.block(Tile<T>::kWeights, segment.begin, segment.end, left, right)
                  .transposed(),
              queries, segment.begin > 0);
        });
  }

  std::vector<Tensor> gradients(bool rounded) const {
    return wanted_gradients(problem_, wanted_, rounded, query_, key_, scale_terms_, bias_terms_);
  }

 private:
  // No pair at all: what is summed is 0.
  void run_empty(const Outputs<T>& outputs) {
    for (std::vector<Tensor>* gradients : {&query_, &key_}) {
      for (Tensor& gradient : *gradients) torch::stable::zero_(gradient);
    }
    if (outputs.loss == nullptr || problem_.critic.kind == Kind::kNce) return;
    for (size_t layer = 0; layer < problem_.layers.size(); ++layer) {
      for (const int64_t query : problem_.pairs.queries) {
        outputs.lse[layer * num_queries_ + query] = -std::numeric_limits<T>::infinity();
      }
    }
  }

  template <typename AnyTile>
  Matrix<T> query_gradient(const AnyTile& tile, int64_t layer) const {
    return as_matrix<T>(query_[layer]).middle_rows(tile.first, tile.last);
  }

  // Form the tile. By index, only the weight of the positive depends on the whole row: the query
  // gradient of the other keys is summed along, while their block is in cache. Whether it was.
  bool exponentiate(Tile<T>& tile, int64_t layer, const T* lse) {
    if (query_.empty() || !problem_.by_index()) {
      tile.exponentiate(lse);
      return false;
    }
    return tile.exponentiate(lse, [&](int64_t left, int64_t right) {
      tile.clear_left_out(left, right);
      tile.scale_columns(left, right);
      multiply(
          query_gradient(tile, layer), tile.block(tile.kWeights, left, right),
          tile.layer.key.rows.middle_rows(left, right), left > 0);
    });
  }

  template <typename AnyTile>
  std::vector<RowWeights<T>> weights_of(AnyTile& tile, int64_t layer, const Upstream<T>& upstream)
      const {
    std::vector<RowWeights<T>> weights;
    weights.reserve(tile.last - tile.first);
    for (int64_t row = tile.first; row < tile.last; ++row) {
      const int64_t place = layer * num_queries_ + problem_.pairs.queries[row];
      const T g = upstream.grad_loss == nullptr ? upstream.each : upstream.grad_loss[place];
      const T h = upstream.grad_lse == nullptr ? T(0) : upstream.grad_lse[place];
      weights.push_back(row_weights(problem_, tile.sums(row), row, g, h));
    }
    return weights;
  }

  void weigh(Tile<T>& tile, int64_t layer, const Upstream<T>& upstream, bool summed) {
    const std::vector<RowWeights<T>> weights = weights_of(tile, layer, upstream);
    const Matrix<T> key = tile.layer.key.rows;
    // By blocks, for only a block stays in the second cache until its product.
    tile.for_blocks([&](int64_t left, int64_t right) {
      for (int64_t row = tile.first; row < tile.last; ++row) {
        weigh_run(tile, row, weights[row - tile.first], left, right);
      }
      if (summed) return;
      tile.scale_columns(left, right);
      if (query_.empty()) return;
      multiply(
          query_gradient(tile, layer), tile.block(tile.kWeights, left, right),
          key.middle_rows(left, right), left > 0);
    });
    for (int64_t row = tile.first; row < tile.last; ++row) {
      const RowWeights<T>& w = weights[row - tile.first];
      if (summed) {
        const int64_t positive = problem_.pairs.positive[row];
        T* const own = positive == kNone ? nullptr : tile.at(tile.kWeights, row, positive);
        if (own != nullptr) *own *= factor_of(tile.layer.key, positive);
        add_own(tile, layer, row, w.exps, own == nullptr ? T(0) : *own);
      }
      finish_row(tile, layer, row, w);
      if (wanted_.key) {
        feature_rows<T>().scaled_copy(
            tile.layer.query.rows.row(row), as_matrix<T>(scaled_query_[layer]).row(row),
            tile.layer.query.dimension(), w.factor * problem_.logit_scale);
      }
    }
  }

  void weigh(PanelTile<T>& tile, const Segment<T>& segment, const Upstream<T>& upstream) {
    const int64_t layer = segment.layer;
    const std::vector<RowWeights<T>> weights = weights_of(tile, layer, upstream);
    const auto changed = [](const RowWeights<T>& w) { return w.exps != 1; };
    if (wanted_.key && std::any_of(weights.begin(), weights.end(), changed)) {
      std::vector<T> factors;
      for (const RowWeights<T>& w : weights) factors.push_back(w.exps);
      tile.scale_rows(factors);
    }
    for (int64_t row = tile.first; row < tile.last; ++row) {
      const RowWeights<T>& w = weights[row - tile.first];
      const int64_t positive = problem_.pairs.positive[row];
      if (positive != kNone) tile.at(row, positive) = w.own;
      if (!query_.empty()) {
        const T own = positive == kNone ? T(0) : w.own * factor_of(tile.layer.key, positive);
        add_own(tile, layer, row, w.exps, own);
      }
      finish_row(tile, layer, row, w);
      if (wanted_.key) {
        const Matrix<T> packed = as_matrix<T>(scaled_query_[layer]);
        tile.pack_query(row, w.factor * problem_.logit_scale, packed.row(segment.begin));
      }
    }
  }

  static T factor_of(const Features<T>& keys, int64_t column) {
    return keys.factors.empty() ? T(1) : keys.factors[column];
  }

  // To the sum of the other keys by exp(logits - shift), times `exps`, add the positive.
  template <typename AnyTile>
  void add_own(const AnyTile& tile, int64_t layer, int64_t row, T exps, T own) const {
    T* gradient = query_gradient(tile, layer).row(row - tile.first);
    const int64_t positive = problem_.pairs.positive[row], dimension = tile.layer.key.dimension();
    if (positive == kNone) {
      feature_rows<T>().scale_row(gradient, dimension, exps);
    } else {
      feature_rows<T>().combine(gradient, tile.layer.key.rows.row(positive), dimension, exps, own);
    }
  }

  // What remains once the sums of a row of weights are known.
  template <typename AnyTile>
  void finish_row(AnyTile& tile, int64_t layer, int64_t row, const RowWeights<T>& w) {
    const int64_t place = layer * problem_.pairs.rows() + row;
    const int64_t dimension = tile.layer.query.dimension();
    if (!query_.empty()) {
      T* gradient = as_matrix<T>(query_[layer]).row(row);
      // sum_j W_ij q_i·k_j
      if (wanted_.logit_scale) {
        scale_terms_[place] =
            w.factor * feature_rows<T>().dot(gradient, tile.layer.query.rows.row(row), dimension);
      }
      feature_rows<T>().scale_row(gradient, dimension, w.factor * problem_.logit_scale);
    }
    if (wanted_.bias) bias_terms_[place] = w.factor * tile.sums(row).negative;
  }

  // The gradient of some columns, by the panels of a segment.
  void multiply_columns(const Segment<T>& segment, int64_t left, int64_t right) {
    const Layer<T>& layer = problem_.layers[segment.layer];
    const Matrix<T> gradient = as_matrix<T>(key_[segment.layer]);
    const T* queries = as_matrix<T>(scaled_query_[segment.layer]).row(segment.begin);
    const int64_t width = panels<T>().width;
    for (int64_t begin = left; begin < right; begin += kPanelKeys) {
      const int64_t end = std::min(right, begin + kPanelKeys);
      panels<T>().multiply_weights(
          gradient.middle_rows(begin, end), segment.planes + begin * width, width * segment.columns,
          segment.rows(), queries, segment.begin > 0);
    }
    const bool last = segment.end == problem_.pairs.rows();
    for (int64_t j = left; j < right && last && !layer.key.factors.empty(); ++j) {
      feature_rows<T>().scale_row(gradient.row(j), gradient.columns, layer.key.factors[j]);
    }
  }

  const Problem<T>& problem_;
  const int64_t num_queries_;
  const Wanted wanted_;
  std::vector<Tensor> query_;          // gradients of the rows (rows, D)
  std::vector<Tensor> key_;            // of the columns (columns, D)
  std::vector<Tensor> scaled_query_;   // the rows times what their weights lack; packed or not
  std::vector<PackedKeys<T>> packed_;  // of each layer, where panels serve
  std::vector<T> scale_terms_, bias_terms_;
};

}  // namespace mim4dd
