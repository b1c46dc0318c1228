// out[rows[b]] += scale · source[b], in the order of b: rows that occur twice have the same bits in
// every run.
#pragma once

#include "flat_pass_operands.h"
#include "scaled_sum.h"

namespace mim4dd {

inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto* start_a = static_cast<const char*>(a.data_ptr());
  const auto* start_b = static_cast<const char*>(b.data_ptr());
  return start_a < start_b + b.numel() * b.element_size() &&
         start_b < start_a + a.numel() * a.element_size();
}

// run(out, rows, source, scale) on contiguous tensors.
template <typename Runner>
void scatter_add_rows(Tensor out, const Tensor& rows, const Tensor& source, double scale) {
  STD_TORCH_CHECK(
      out.dim() >= 1 && rows.dim() == 1 && source.dim() == out.dim() &&
          source.size(0) == rows.size(0),
      "scatter_add_rows: out, rows and source must be (n, ...), (B) and (B, ...)");
  for (int64_t axis = 1; axis < out.dim(); ++axis) {
    STD_TORCH_CHECK(
        source.size(axis) == out.size(axis),
        "scatter_add_rows: a row of source must have the shape of a row of out");
  }
  STD_TORCH_CHECK(
      rows.scalar_type() == torch::headeronly::ScalarType::Long,
      "scatter_add_rows: rows must be int64");
  STD_TORCH_CHECK(
      source.scalar_type() == out.scalar_type() && source.device() == out.device() &&
          rows.device() == out.device(),
      "scatter_add_rows: out and source must share a dtype, and all three a device");
  if (out.numel() == 0 || source.numel() == 0) {
    STD_TORCH_CHECK(
        out.size(0) > 0 || rows.numel() == 0,
        "scatter_add_rows: rows must index the 0 rows of out");
    return;
  }
  Tensor out_c = as_contiguous(out);
  const Tensor rows_c = as_contiguous(rows), source_c = as_contiguous(source);
  STD_TORCH_CHECK(!overlap(out_c, source_c), "scatter_add_rows: source must not overlap out");
  MIM4DD_DISPATCH_FLOATING_AND_HALF(out.scalar_type(), "scatter_add_rows", [&] {
    Runner::run(
        out_c.mutable_data_ptr<scalar_t>(), out.size(0), rows_c.const_data_ptr<int64_t>(),
        source_c.const_data_ptr<scalar_t>(), rows.size(0), out.numel() / out.size(0),
        static_cast<Arithmetic<scalar_t>>(scale), out);
  });
  if (!out.is_contiguous()) torch::stable::copy_(out, out_c);
}

}  // namespace mim4dd
