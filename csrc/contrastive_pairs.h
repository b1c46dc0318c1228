// Which query meets which key, from vectors of labels: O(N + M) memory, O((N + M) log M) time; and
// as much again for every key that each query leaves out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
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

// key_labels null: labels are indices into num_keys keys. excluded: of each query the indices of
// the keys that it leaves out, (num_queries, num_excluded); one that is no index names none.
Pairs make_pairs(
    const int64_t* labels,
    int64_t num_queries,
    const int64_t* key_labels,
    int64_t num_keys,
    const int64_t* excluded,
    int64_t num_excluded);

}  // namespace mim4dd
