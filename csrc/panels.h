// Products of weights that lie in panels: some queries beside each other, as many as a tile in
// registers has columns, and one key below the other.
//
// So what one product writes is what the next one reads, from the first cache and without a copy:
// the gradient of these queries has a panel as its right side. Keys are packed once for all
// queries.
#pragma once

#include "isa.h"
#include "matrix.h"

namespace mim4dd {

// Terms that are summed in registers before they are added to a result: of more, float32 would
// round too much, and a panel would leave the first cache.
constexpr int64_t kPanelRun = 128;

template <typename T>
struct Panels {
  // Queries of a panel; 0 where no CPU was measured: then nothing below is there.
  int64_t width;

  // The left side (rows, terms) of multiply_panel: as many numbers in another order.
  void (*pack_left)(const Matrix<T>& left, T* to);

  // (terms, columns) as panels, each (terms, width); zeros after the last column.
  void (*pack_panels)(const Matrix<T>& right, T* to);

  // out (rows, width) = alpha left right, or += alpha left right, with left packed and right a
  // panel.
  void (*multiply_panel)(
      T* out,
      const T* left,
      int64_t rows,
      const T* right,
      int64_t terms,
      bool add,
      T alpha);

  // logits (keys, width) := exp(logits - shifts), and sums += what each of the queries sums to.
  void (*exponentiate_panel)(T* logits, int64_t keys, const T* shifts, T* sums);

  // out (keys, D) = weights^T right, or +=: of so many queries in panels that lie `stride` numbers
  // apart, and right (queries, D) in panels for each kPanelRun of the queries.
  void (*multiply_weights)(
      const Matrix<T>& out,
      const T* weights,
      int64_t stride,
      int64_t queries,
      const T* right,
      bool add);
};

template <typename T>
const Panels<T>& panels() {
  return kernels<Panels<T>>();
}

}  // namespace mim4dd
