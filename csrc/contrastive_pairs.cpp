#include "contrastive_pairs.h"

#include <algorithm>
#include <numeric>

namespace mim4dd {
namespace {

std::vector<int64_t> indices_without(const int64_t* labels, int64_t n, int64_t ignored) {
  std::vector<int64_t> kept;
  kept.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    if (labels[i] != ignored) kept.push_back(i);
  }
  return kept;
}

std::vector<int64_t> every_index(int64_t n) {
  std::vector<int64_t> all(n);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

// The column of each query's own key.
std::vector<int64_t> self_columns(const Pairs& pairs, int64_t num_keys) {
  std::vector<int64_t> column_of_key(num_keys, kNone);
  for (int64_t column = 0; column < pairs.columns(); ++column) {
    column_of_key[pairs.keys[column]] = column;
  }
  std::vector<int64_t> self;
  self.reserve(pairs.rows());
  for (const int64_t query : pairs.queries) {
    self.push_back(query < num_keys ? column_of_key[query] : kNone);
  }
  return self;
}

void pair_by_index(Pairs& pairs, const int64_t* labels, int64_t num_keys) {
  pairs.positive.reserve(pairs.rows());
  for (int64_t row = 0; row < pairs.rows(); ++row) {
    const int64_t index = labels[pairs.queries[row]];
    const bool there = index >= 0 && index < num_keys && index != pairs.self_of(row);
    pairs.positive.push_back(there ? index : kNone);
    pairs.num_positives.push_back(there ? 1 : 0);
  }
  pairs.row_label.assign(pairs.positive.begin(), pairs.positive.end());
  pairs.column_label.resize(pairs.columns());
  std::iota(pairs.column_label.begin(), pairs.column_label.end(), 0);
}

void pair_by_label(Pairs& pairs, const int64_t* labels, const int64_t* key_labels) {
  const auto label_of = [&](int64_t column) { return key_labels[pairs.keys[column]]; };
  std::vector<int64_t> order = every_index(pairs.columns());  // columns, those of a label together
  std::stable_sort(
      order.begin(), order.end(), [&](int64_t a, int64_t b) { return label_of(a) < label_of(b); });
  std::vector<int64_t> distinct, first;  // labels, and where in `order` each begins
  pairs.column_label.resize(pairs.columns());
  for (int64_t place = 0; place < pairs.columns(); ++place) {
    const int64_t label = label_of(order[place]);
    if (distinct.empty() || distinct.back() != label) {
      distinct.push_back(label);
      first.push_back(place);
    }
    pairs.column_label[order[place]] = static_cast<int32_t>(distinct.size() - 1);
  }
  first.push_back(pairs.columns());

  bool several = false;
  pairs.positive.assign(pairs.rows(), kNone);
  for (int64_t row = 0; row < pairs.rows(); ++row) {
    const int64_t label = labels[pairs.queries[row]];
    const auto found = std::lower_bound(distinct.begin(), distinct.end(), label);
    const bool there = found != distinct.end() && *found == label;
    const int64_t rank = found - distinct.begin();
    const int64_t self = pairs.self_of(row);
    pairs.row_label.push_back(there ? static_cast<int32_t>(rank) : kNone);
    const bool own = there && self != kNone && pairs.column_label[self] == rank;
    const int64_t count = there ? first[rank + 1] - first[rank] - (own ? 1 : 0) : 0;
    pairs.num_positives.push_back(count);
    several = several || count > 1;
    if (count == 1) {
      const int64_t column = order[first[rank]];
      pairs.positive[row] = column == self ? order[first[rank] + 1] : column;
    }
  }
  if (several) pairs.positive.clear();
}

}  // namespace

Pairs make_pairs(
    const int64_t* labels,
    int64_t num_queries,
    const int64_t* key_labels,
    int64_t num_keys,
    bool exclude_self) {
  Pairs pairs;
  pairs.queries = indices_without(labels, num_queries, kIgnore);
  pairs.keys = key_labels == nullptr ? every_index(num_keys)
                                     : indices_without(key_labels, num_keys, kIgnore);
  if (exclude_self) pairs.self = self_columns(pairs, num_keys);
  if (key_labels == nullptr) {
    pair_by_index(pairs, labels, num_keys);
  } else {
    pair_by_label(pairs, labels, key_labels);
  }
  return pairs;
}

}  // namespace mim4dd
