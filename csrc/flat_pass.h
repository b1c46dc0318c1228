// One pass over flat vectors: some are read, some are written, some sums are taken on the way.
//
// A pass is written once, as a struct, and runs on a CPU (flat_pass_cpu.h) and on a GPU
// (flat_pass_cuda.h). Its vectors are (rows, numel), one after the other, all of one dtype. It has
//
//   scalar_t, kInputs, kOutputs, kSums      the dtype of its vectors, how many, how many sums
//   in, out                                 pointers to them, which the pass names by an enum
//   Row load(row)                           what all elements of a row share, read from memory
//   element(row, in, out, sums)             one element: values in, values and terms of sums out
//   finish(row, sums)                       what is made of the sums of a row
//
// An input that is not there is another one in its place: read again from the cache, and ignored.
// That costs no memory traffic and spares a kernel for each combination.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "arithmetic.h"
#include "host_device.h"

namespace mim4dd {

template <typename T, int inputs, int outputs, int sums>
struct FlatPass {
  using scalar_t = T;
  using value_t = Arithmetic<T>;
  static constexpr int kInputs = inputs, kOutputs = outputs, kSums = sums;
  // Arrays of no elements are not C++.
  static constexpr int kOutputSlots = outputs > 0 ? outputs : 1, kSumSlots = sums > 0 ? sums : 1;

  const T* in[inputs];
  T* out[kOutputSlots] = {};  // also where none is written: a pass is copied

  MIM4DD_HOST_DEVICE void finish(int64_t, const double*) const {}
};

// A choice that is the same for all elements. A branch would keep compilers from vector code, and a
// factor of 0 would make NaN of what is infinite.
template <typename V>
class Switch {
  using Bits = std::conditional_t<sizeof(V) == 8, uint64_t, uint32_t>;
  Bits mask_ = 0;

  MIM4DD_HOST_DEVICE static Bits bits(V value) {
    Bits result;
    std::memcpy(&result, &value, sizeof value);
    return result;
  }

 public:
  Switch() = default;
  explicit Switch(bool on) : mask_(on ? ~Bits(0) : Bits(0)) {}

  MIM4DD_HOST_DEVICE V choose(V if_on, V if_off) const {
    const Bits chosen = (bits(if_on) & mask_) | (bits(if_off) & ~mask_);
    V result;
    std::memcpy(&result, &chosen, sizeof result);
    return result;
  }
};

// A step size: one for all, read by whoever runs the pass, or one per parameter.
template <typename T>
struct StepSize {
  const T* lr;
  Switch<Arithmetic<T>> per_parameter;

  StepSize() = default;
  StepSize(const T* values, bool of_each) : lr(values), per_parameter(of_each) {}

  MIM4DD_HOST_DEVICE Arithmetic<T> load() const { return static_cast<Arithmetic<T>>(*lr); }
};

}  // namespace mim4dd
