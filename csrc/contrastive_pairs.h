// Which query meets which key, from vectors of labels: O(N + M) memory, O((N + M) log M) time; and
// as much again for every key that each query leaves out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace mim4dd {

constexpr int64_t kIgnore = -1;  // a label: this query or key takes no part
constexpr int32_t kNone = -1;    // a compact label or column: there is none

// Some columns, from the lowest to the highest.
struct Columns {
  const int64_t *first, *last;

  const int64_t* begin() const { return first; }
  const int64_t* end() const { return last; }
  int64_t size() const { return last - first; }
  bool contain(int64_t column) const { return std::binary_search(first, last, column); }
  Columns within(int64_t left, int64_t right) const {
    const int64_t* from = std::lower_bound(first, last, left);
    return {from, std::lower_bound(from, last, right)};
  }
};

// Ignored queries and keys are left out here, so that nothing after this sees them. What remains is
// numbered anew: a row is a query, a column a key.
struct Pairs {
  std::vector<int64_t> queries, keys;            // of each row and column, its index in the input
  std::vector<int32_t> row_label, column_label;  // numbered from 0; kNone: no key has it
  std::vector<int64_t> num_positives;            // of each row
  std::vector<int64_t> excluded;        // the columns that each row leaves out, row after row,
  std::vector<int64_t> excluded_begin;  // and where they begin; empty where none leaves out any
  std::vector<int64_t> positive;  // the one positive column of each row; kNone: none, or several
  bool several = false;           // whether a row has several

  int64_t rows() const { return static_cast<int64_t>(queries.size()); }
  int64_t columns() const { return static_cast<int64_t>(keys.size()); }
  Columns excluded_of(int64_t row) const {
    if (excluded_begin.empty()) return {nullptr, nullptr};
    return {excluded.data() + excluded_begin[row], excluded.data() + excluded_begin[row + 1]};
  }
  int64_t num_keys(int64_t row) const { return columns() - excluded_of(row).size(); }
};

inline std::vector<int64_t> indices_without(const int64_t* labels, int64_t n, int64_t ignored) {
  std::vector<int64_t> kept;
  kept.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    if (labels[i] != ignored) kept.push_back(i);
  }
  return kept;
}

inline std::vector<int64_t> every_index(int64_t n) {
  std::vector<int64_t> all(n);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

inline void exclude(Pairs& pairs, const int64_t* excluded, int64_t num_excluded, int64_t num_keys) {
  std::vector<int64_t> column_of_key(num_keys, kNone);
  for (int64_t column = 0; column < pairs.columns(); ++column) {
    column_of_key[pairs.keys[column]] = column;
  }
  pairs.excluded_begin.assign(1, 0);
  pairs.excluded.reserve(pairs.rows() * num_excluded);
  for (const int64_t query : pairs.queries) {
    const auto begin = pairs.excluded.size();
    for (int64_t k = 0; k < num_excluded; ++k) {
      const int64_t key = excluded[query * num_excluded + k];
      const bool there = key >= 0 && key < num_keys && column_of_key[key] != kNone;
      if (there) pairs.excluded.push_back(column_of_key[key]);
    }
    const auto first = pairs.excluded.begin() + begin;
    std::sort(first, pairs.excluded.end());
    pairs.excluded.erase(std::unique(first, pairs.excluded.end()), pairs.excluded.end());
    pairs.excluded_begin.push_back(pairs.excluded.size());
  }
}

inline void pair_by_index(Pairs& pairs, const int64_t* labels, int64_t num_keys) {
  pairs.positive.reserve(pairs.rows());
  for (int64_t row = 0; row < pairs.rows(); ++row) {
    const int64_t index = labels[pairs.queries[row]];
    const bool there = index >= 0 && index < num_keys && !pairs.excluded_of(row).contain(index);
    pairs.positive.push_back(there ? index : kNone);
    pairs.num_positives.push_back(there ? 1 : 0);
  }
  pairs.row_label.assign(pairs.positive.begin(), pairs.positive.end());
  pairs.column_label.resize(pairs.columns());
  std::iota(pairs.column_label.begin(), pairs.column_label.end(), 0);
}

inline void pair_by_label(Pairs& pairs, const int64_t* labels, const int64_t* key_labels) {
  const auto label_of = [&](int64_t column) { return key_labels[pairs.keys[column]]; };
  std::vector<int64_t> order = every_index(pairs.columns());  // columns, those of a label together
  const auto sort_key = [&](int64_t column) { return std::make_pair(label_of(column), column); };
  std::sort(
      order.begin(), order.end(), [&](int64_t a, int64_t b) { return sort_key(a) < sort_key(b); });
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

  pairs.positive.assign(pairs.rows(), kNone);
  for (int64_t row = 0; row < pairs.rows(); ++row) {
    const int64_t label = labels[pairs.queries[row]];
    const auto found = std::lower_bound(distinct.begin(), distinct.end(), label);
    const bool there = found != distinct.end() && *found == label;
    const int64_t rank = found - distinct.begin();
    const Columns excluded = pairs.excluded_of(row);
    pairs.row_label.push_back(there ? static_cast<int32_t>(rank) : kNone);
    const int64_t left_out = std::count_if(excluded.begin(), excluded.end(), [&](int64_t column) {
      return pairs.column_label[column] == rank;
    });
    const int64_t count = there ? first[rank + 1] - first[rank] - left_out : 0;
    pairs.num_positives.push_back(count);
    pairs.several = pairs.several || count > 1;
    if (count == 1) {
      const auto is_left = [&](int64_t column) { return !excluded.contain(column); };
      pairs.positive[row] = *std::find_if(order.begin() + first[rank], order.end(), is_left);
    }
  }
}

// key_labels null: labels are indices into num_keys keys. excluded: of each query the indices of
// the keys that it leaves out, (num_queries, num_excluded); one that is no index names none.
inline Pairs make_pairs(
    const int64_t* labels,
    int64_t num_queries,
    const int64_t* key_labels,
    int64_t num_keys,
    const int64_t* excluded,
    int64_t num_excluded) {
  Pairs pairs;
  pairs.queries = indices_without(labels, num_queries, kIgnore);
  pairs.keys = key_labels == nullptr ? every_index(num_keys)
                                     : indices_without(key_labels, num_keys, kIgnore);
  if (num_excluded > 0) exclude(pairs, excluded, num_excluded, num_keys);
  if (key_labels == nullptr) {
    pair_by_index(pairs, labels, num_keys);
  } else {
    pair_by_label(pairs, labels, key_labels);
  }
  return pairs;
}

}  // namespace mim4dd
