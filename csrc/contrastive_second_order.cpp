// Second derivatives of the contrastive losses on a CPU, from the closed form in docs/math.md.
//
// With W the gradient weights of the logits and t the derivative of the logits along the tangents,
// Psi = sum_ij W_ij t_ij. V is the derivative of Psi through W.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "contrastive.h"
#include "contrastive_tile.h"

namespace mim4dd {
namespace {

// Tangents of one layer: of query (rows, D) and key (columns, D), of logit_scale and bias.
template <typename T>
struct Tangents {
  Features<T> query, key;
  T logit_scale, bias;
};

template <typename T>
class SecondOrder {
 public:
  SecondOrder(
      const Problem<T>& problem,
      const std::vector<Tangents<T>>& tangents,
      const Upstream<T>& upstream,
      T* grad_grad_loss,
      T* grad_grad_lse,
      int64_t num_queries,
      const Wanted& wanted)
      : problem_(problem),
        tangents_(tangents),
        upstream_(upstream),
        grad_grad_loss_(grad_grad_loss),
        grad_grad_lse_(grad_grad_lse),
        num_queries_(num_queries),
        wanted_(wanted),
        planes_(problem.critic.kind == Kind::kIn ? 3 : 2) {
    const int64_t rows = problem.pairs.rows(), columns = problem.pairs.columns();
    for (const Layer<T>& layer : problem.layers) {
      const int64_t dimension = layer.query.dimension();
      query_.push_back(empty_matrix<T>(rows, dimension));
      key_.push_back(empty_matrix<T>(columns, dimension));
    }
    scale_terms_.resize(problem.layers.size() * rows);
    bias_terms_.resize(scale_terms_.size());
  }

  void run() {
    if (problem_.pairs.rows() == 0 || problem_.pairs.columns() == 0) {
      for (Tensor& gradient : query_) torch::stable::zero_(gradient);
      for (Tensor& gradient : key_) torch::stable::zero_(gradient);
      return;
    }
    run_waves<T>(
        problem_.pairs.rows(), problem_.pairs.columns(), problem_.order(), planes_,
        [&](const Segment<T>& segment, int64_t first, int64_t last, int64_t width) {
          Tile<T> tile(problem_, segment, first, last, width);
          tile.exponentiate(upstream_.lse + segment.layer * num_queries_);
          form_tangents(tile, tangents_[segment.layer]);
          for (int64_t row = first; row < last; ++row) weigh_row(tile, segment.layer, row);
          if (wanted_.query || wanted_.logit_scale) sum_query(tile, segment.layer);
        },
        [&](const Segment<T>& segment, int64_t left, int64_t right) {
          if (wanted_.key) sum_key(segment, left, right);
        });
  }

  std::vector<Tensor> gradients() const {
    return wanted_gradients(problem_, wanted_, true, query_, key_, scale_terms_, bias_terms_);
  }

 private:
  int tangent_plane() const { return planes_ - 1; }

  // t = (sigma a + gamma q)·k + sigma q·b + beta.
  void form_tangents(const Tile<T>& tile, const Tangents<T>& tangents) {
    const Matrix<T> query = tile.layer.query.rows.middle_rows(tile.first, tile.last);
    const Tensor mixed_storage = empty_matrix<T>(query.rows, query.columns);
    const Matrix<T> mixed = as_matrix<T>(mixed_storage);
    mix_rows(tangents, tile.layer, tile.first, tile.last, mixed);
    tile.for_blocks([&](int64_t left, int64_t right) {
      const Matrix<T> block = tile.block(tangent_plane(), left, right);
      multiply(block, mixed, tile.layer.key.rows.middle_rows(left, right).transposed(), false);
      multiply(
          block, query, tangents.key.rows.middle_rows(left, right).transposed(), true,
          problem_.logit_scale);
      if (tangents.bias != 0) {
        for (int64_t i = 0; i < block.rows * block.columns; ++i) block.data[i] += tangents.bias;
      }
    });
  }

  // sigma a + gamma q, for rows [first, last).
  void mix_rows(
      const Tangents<T>& tangents,
      const Layer<T>& layer,
      int64_t first,
      int64_t last,
      const Matrix<T>& mixed) const {
    for (int64_t row = first; row < last; ++row) {
      T* out = mixed.row(row - first);
      feature_rows<T>().scaled_copy(
          tangents.query.rows.row(row), out, mixed.columns, problem_.logit_scale);
      feature_rows<T>().combine(
          out, layer.query.rows.row(row), mixed.columns, T(1), tangents.logit_scale);
    }
  }

  // What the row's tangents come to, and in place of its exps and tangents V and W.
  void weigh_row(Tile<T>& tile, int64_t layer, int64_t row) {
    const Pairs& pairs = problem_.pairs;
    const RowSums<T>& sums = tile.sums(row);
    const int64_t place = layer * num_queries_ + pairs.queries[row];
    const bool counts = problem_.counts(row);
    const T g = counts ? upstream_.grad_loss[place] : T(0);
    const T h = upstream_.grad_lse == nullptr ? T(0) : upstream_.grad_lse[place];
    for (const int64_t column : pairs.excluded_of(row)) {
      *tile.at(Tile<T>::kWeights, row, column) = 0;
      *tile.at(tangent_plane(), row, column) = 0;
    }
    if (problem_.critic.kind == Kind::kNce) {
      weigh_binary_row(tile, layer, row, place, counts, g);
      return;
    }
    const T denominator = sums.denominator();
    const T inverse = denominator == 0 ? T(0) : 1 / denominator;
    if (problem_.critic.kind == Kind::kIn && counts) {
      weigh_inside_row(tile, row, place, g, h, inverse);
      return;
    }
    if (problem_.sole_positive(row) != kNone) {
      weigh_sole_row(tile, row, place, g, h, inverse);
      return;
    }
    T mean = 0;
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t*, T*, int64_t n) {
      mean += logit_rows<T>().weighted_sum(exps, tangents, n);
    });
    mean *= inverse;
    grad_grad_loss_[place] = counts ? mean - attraction_mean(tile, row) : T(0);
    grad_grad_lse_[place] = mean;

    const T y = counts ? g / T(pairs.num_positives[row]) : T(0);
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t* labels, T*, int64_t n) {
      logit_rows<T>().softmax_second_order(exps, tangents, n, (g + h) * inverse, mean);
      if (counts) logit_rows<T>().subtract_positives(tangents, labels, pairs.row_label[row], n, y);
    });
  }

  // With one positive. Of the denominator it is a share s and the other keys r. What is
  // subtracted there has no digits left near s = 1, but p - 1 = -r and, with n_mean the mean of the
  // tangents over the other keys, t - mean = r (t - n_mean).
  void weigh_sole_row(Tile<T>& tile, int64_t row, int64_t place, T g, T h, T inverse) {
    const RowSums<T>& sums = tile.sums(row);
    const int64_t positive = problem_.pairs.positive[row];
    T& v = *tile.at(Tile<T>::kWeights, row, positive);
    T& w = *tile.at(tangent_plane(), row, positive);
    v = 0;
    T of_others = 0;
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t*, T*, int64_t n) {
      of_others += logit_rows<T>().weighted_sum(exps, tangents, n);
    });
    const T s = sums.positive * inverse, r = sums.negative * inverse;
    const T ahead = r * w - of_others * inverse, mean = s * w + of_others * inverse;
    grad_grad_loss_[place] = -ahead;
    grad_grad_lse_[place] = mean;
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t*, T*, int64_t n) {
      logit_rows<T>().softmax_second_order(exps, tangents, n, (g + h) * inverse, mean);
    });
    v = (g + h) * s * ahead;
    w = h * s - g * r;
  }

  // The same for variant "in", where s is the share of all positives, and there p = s y:
  //   p - y = -r y,   p (t - mean) - y (t - y_mean) = -r y (t - y_mean - s (y_mean - n_mean)),
  // with y_mean and n_mean the means of the tangents over the positives and over the negatives.
  void weigh_inside_row(Tile<T>& tile, int64_t row, int64_t place, T g, T h, T inverse) {
    const RowSums<T>& sums = tile.sums(row);
    const int32_t own = problem_.pairs.row_label[row];
    T y_mean = 0, n_mean = 0;
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t* labels, T* copy, int64_t n) {
      logit_rows<T>().positive_weights(
          copy, labels, own, n, sums.positive_shift, 1 / sums.own_positive);
      y_mean += logit_rows<T>().weighted_sum(copy, tangents, n);
      n_mean += logit_rows<T>().negative_weighted_sum(exps, tangents, labels, own, n);
    });
    const T s = sums.positive * inverse, r = sums.negative * inverse;
    const T mean = s * y_mean + n_mean * inverse;
    n_mean = sums.negative == 0 ? y_mean : n_mean / sums.negative;
    grad_grad_loss_[place] = r * (n_mean - y_mean);
    grad_grad_lse_[place] = mean;
    for_row(tile, row, [&](T* exps, T* tangents, const int32_t* labels, T* copy, int64_t n) {
      feature_rows<T>().scale_row(copy, n, g * r);
      logit_rows<T>().softmax_second_order_inside(
          exps, tangents, copy, labels, own, n, (g + h) * inverse, h * inverse, mean,
          y_mean + s * (y_mean - n_mean));
    });
  }

  void
  weigh_binary_row(Tile<T>& tile, int64_t layer, int64_t row, int64_t place, bool counts, T g) {
    T along = 0, slope = 0;
    for_row(tile, row, [&](T* weights, T* tangents, const int32_t* labels, T*, int64_t n) {
      along += logit_rows<T>().weighted_sum(weights, tangents, n);
      slope += logit_rows<T>().binary_second_order(
          weights, tangents, labels, problem_.pairs.row_label[row], n, g);
    });
    grad_grad_loss_[place] = counts ? along : T(0);
    grad_grad_lse_[place] = 0;
    bias_terms_[layer * problem_.pairs.rows() + row] = slope;
  }

  // sum_j y_ij t_ij, where the positives weigh alike.
  T attraction_mean(const Tile<T>& tile, int64_t row) const {
    const int32_t own = problem_.pairs.row_label[row];
    T sum = 0;
    for_row(tile, row, [&](T*, T* tangents, const int32_t* labels, T*, int64_t n) {
      sum += logit_rows<T>().positive_sum(tangents, labels, own, n);
    });
    return sum / T(problem_.pairs.num_positives[row]);
  }

  // body(exps, tangents, labels, copied logits or null, n) for runs of the row's keys, without
  // those it leaves out.
  template <typename Body>
  void for_row(const Tile<T>& tile, int64_t row, const Body& body) const {
    const Pairs& pairs = problem_.pairs;
    const bool copied = problem_.critic.kind == Kind::kIn;
    tile.for_blocks([&](int64_t left, int64_t right) {
      T* exps = tile.block(Tile<T>::kWeights, left, right).row(row - tile.first);
      T* tangents = tile.block(tangent_plane(), left, right).row(row - tile.first);
      T* copy = copied ? tile.block(Tile<T>::kLogits, left, right).row(row - tile.first) : nullptr;
      for_runs(left, right, pairs.excluded_of(row), kNone, [&](int64_t begin, int64_t end) {
        body(
            exps + begin, tangents + begin, pairs.column_label.data() + left + begin,
            copied ? copy + begin : nullptr, end - begin);
      });
    });
  }

  // dQ = sigma V K + gamma W K + sigma W b, and from the same products the gradient of logit_scale.
  void sum_query(Tile<T>& tile, int64_t layer) {
    const Tangents<T>& tangents = tangents_[layer];
    const Matrix<T> gradient = as_matrix<T>(query_[layer]).middle_rows(tile.first, tile.last);
    const int64_t dimension = gradient.columns;
    const bool needs_wk = wanted_.logit_scale || tangents.logit_scale != 0;
    const Tensor wk_storage = empty_matrix<T>(needs_wk ? gradient.rows : 0, dimension);
    const Matrix<T> wk = as_matrix<T>(wk_storage);
    tile.for_blocks([&](int64_t left, int64_t right) {
      const Matrix<T> v = tile.block(Tile<T>::kWeights, left, right);
      const Matrix<T> w = tile.block(tangent_plane(), left, right);
      const Matrix<T> key = tile.layer.key.rows.middle_rows(left, right);
      multiply(gradient, v, key, left > 0);
      multiply(gradient, w, tangents.key.rows.middle_rows(left, right), true);
      if (needs_wk) multiply(wk, w, key, left > 0);
    });
    for (int64_t row = tile.first; row < tile.last; ++row) {
      T* of_row = gradient.row(row - tile.first);
      if (needs_wk) {
        const T* wk_row = wk.row(row - tile.first);
        scale_terms_[layer * problem_.pairs.rows() + row] =
            feature_rows<T>().dot(of_row, tile.layer.query.rows.row(row), dimension) +
            feature_rows<T>().dot(wk_row, tangents.query.rows.row(row), dimension);
        feature_rows<T>().combine(
            of_row, wk_row, dimension, problem_.logit_scale, tangents.logit_scale);
      } else {
        feature_rows<T>().scale_row(of_row, dimension, problem_.logit_scale);
      }
    }
  }

  // dK = sigma Vᵀ Q + Wᵀ (sigma a + gamma q).
  void sum_key(const Segment<T>& segment, int64_t left, int64_t right) {
    const Layer<T>& layer = problem_.layers[segment.layer];
    const Matrix<T> gradient = as_matrix<T>(key_[segment.layer]).middle_rows(left, right);
    const Matrix<T> query = layer.query.rows.middle_rows(segment.begin, segment.end);
    const Tensor mixed_storage = empty_matrix<T>(query.rows, query.columns);
    const Matrix<T> mixed = as_matrix<T>(mixed_storage);
    mix_rows(tangents_[segment.layer], layer, segment.begin, segment.end, mixed);
    const auto block = [&](int plane) {
      return segment.block(plane, segment.begin, segment.end, left, right).transposed();
    };
    multiply(gradient, block(Tile<T>::kWeights), query, segment.begin > 0, problem_.logit_scale);
    multiply(gradient, block(tangent_plane()), mixed, true);
  }

  const Problem<T>& problem_;
  const std::vector<Tangents<T>>& tangents_;
  const Upstream<T> upstream_;
  T *grad_grad_loss_, *grad_grad_lse_;
  const int64_t num_queries_;
  const Wanted wanted_;
  const int planes_;
  std::vector<Tensor> query_, key_;  // gradients of the rows and of the columns
  std::vector<T> scale_terms_, bias_terms_;
};

}  // namespace

std::tuple<Tensor, Tensor, std::vector<Tensor>> contrastive_bwd_bwd_cpu(
    std::vector<Tensor> query,
    std::vector<Tensor> key,
    Tensor labels,
    std::optional<Tensor> key_labels,
    std::optional<Tensor> excluded,
    Tensor logit_scale,
    std::optional<Tensor> bias,
    int64_t kind,
    bool decoupled,
    double hardness,
    bool normalize,
    Tensor lse,
    Tensor /*positive_weight*/,
    Tensor grad_loss,
    std::optional<Tensor> grad_lse,
    std::vector<Tensor> tangent_query,
    std::vector<Tensor> tangent_key,
    Tensor tangent_logit_scale,
    Tensor tangent_bias,
    std::vector<bool> gradients) {
  STD_TORCH_CHECK(!normalize, "contrastive_bwd_bwd: rows must be given as they are compared");
  const Critic critic = make_critic(kind, decoupled, hardness, normalize);
  const Inputs inputs =
      check_inputs({critic, query, key, labels, key_labels, excluded, logit_scale, bias});
  check_inputs(
      {critic, tangent_query, tangent_key, labels, key_labels, excluded, logit_scale, bias});
  const int64_t layers = inputs.layers(), n = inputs.queries();
  STD_TORCH_CHECK(
      tangent_query.size() == query.size() && tangent_logit_scale.numel() == layers &&
          tangent_bias.numel() == layers,
      "contrastive_bwd_bwd: there must be a tangent of every layer");
  for (int64_t i = 0; i < layers; ++i) {
    STD_TORCH_CHECK(
        tangent_query[i].size(1) == query[i].size(1) && tangent_key[i].size(0) == key[i].size(0),
        "contrastive_bwd_bwd: tangents must have the shapes of query and key");
  }
  Tensor grad_grad_loss = torch::stable::new_zeros(logit_scale, {layers, n});
  Tensor grad_grad_lse = torch::stable::new_zeros(logit_scale, {layers, n});
  std::vector<Tensor> result;
  MIM4DD_DISPATCH_FLOATING(inputs.wide(), "contrastive_bwd_bwd", [&] {
    const UpstreamTensors<scalar_t> upstream(inputs, lse, grad_loss, grad_lse);
    const auto problem = make_problem<scalar_t>(inputs);
    const Tensor on_scale = as_type<scalar_t>(tangent_logit_scale);
    const Tensor on_bias = as_type<scalar_t>(tangent_bias);
    std::vector<Tangents<scalar_t>> tangents;
    for (int64_t i = 0; i < layers; ++i) {
      tangents.push_back(
          {make_features<scalar_t>(tangent_query[i], problem.pairs.queries, Normalize::kNot),
           make_features<scalar_t>(tangent_key[i], problem.pairs.keys, Normalize::kNot),
           on_scale.const_data_ptr<scalar_t>()[i], on_bias.const_data_ptr<scalar_t>()[i]});
    }
    SecondOrder<scalar_t> pass(
        problem, tangents, upstream.pointers(), grad_grad_loss.mutable_data_ptr<scalar_t>(),
        grad_grad_lse.mutable_data_ptr<scalar_t>(), n, make_wanted(gradients));
    pass.run();
    result = pass.gradients();
  });
  return {grad_grad_loss, grad_grad_lse, result};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("contrastive_bwd_bwd", TORCH_BOX(&contrastive_bwd_bwd_cpu));
}

}  // namespace mim4dd
