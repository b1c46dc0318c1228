// Matrix products: our own where they win, else those of the library that PyTorch was built with.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "product.h"
#include "tensors.h"

namespace mim4dd {

// out = alpha a b, or out += alpha a b. Called from a thread of a parallel region, it runs on that
// one.
template <typename T>
void multiply(
    const Matrix<T>& out,
    const Matrix<T>& a,
    const Matrix<T>& b,
    bool accumulate,
    T alpha = 1) {
  if (kernels<Products<T>>().multiply(out, a, b, accumulate, alpha)) return;
  const Tensor out_view = view_of(out), a_view = view_of(a), b_view = view_of(b);
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(
      out_view.get(), out_view.get(), a_view.get(), b_view.get(), accumulate ? 1.0 : 0.0, alpha));
}

}  // namespace mim4dd
