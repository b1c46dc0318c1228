// One row of scatter_add_rows on vectors.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "scaled_sum.h"
#include "scatter_add_row.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename T>
void add_row(T* out, const T* source, int64_t n, Arithmetic<T> scale) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = scaled_sum(out[i], source[i], scale);
}

template <typename T>
constexpr AddRow<T> kAddRow{add_row<T>};

}  // namespace

MIM4DD_TABLE(AddRow, float)
MIM4DD_TABLE(AddRow, double)
MIM4DD_TABLE(AddRow, c10::BFloat16)
MIM4DD_TABLE(AddRow, c10::Half)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
