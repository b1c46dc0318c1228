// Which query meets which key, from vectors of labels: O(N + M) memory, O((N + M) log M) time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace mim4dd {

constexpr int64_t kIgnore = -1;  // a label: this query or key takes no part
constexpr int32_t kNone = -1;    // a compact label or column: there is none

// Ignored queries and keys are left out here, so that nothing after this sees them. What remains is
// numbered anew: a row is a query, a column a key.
struct Pairs {
  std::vector<int64_t> queries, keys;            // of each row and column, its index in the input
  std::vector<int32_t> row_label, column_label;  // numbered from 0; kNone: no key has it
  std::vector<int64_t> num_positives;            // of each row
  std::vector<int64_t> self;  // column of each row's own key; empty where that is not left out
  // The one positive column of each row, or kNone; empty where a row has several.
  std::vector<int64_t> positive;

  int64_t rows() const { return static_cast<int64_t>(queries.size()); }
  int64_t columns() const { return static_cast<int64_t>(keys.size()); }
  int64_t self_of(int64_t row) const { return self.empty() ? kNone : self[row]; }
  int64_t num_keys(int64_t row) const { return columns() - (self_of(row) == kNone ? 0 : 1); }
};

// key_labels null: labels are indices into num_keys keys.
Pairs make_pairs(
    const int64_t* labels,
    int64_t num_queries,
    const int64_t* key_labels,
    int64_t num_keys,
    bool exclude_self);

}  // namespace mim4dd
