// Products of small packed matrices at the peak of the CPU: a tile of the result stays in registers
// while both operands stream by. Vectors are those of GCC and Clang, as wide as the instruction set
// that a file is compiled for (isa.h).
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace mim4dd {

namespace MIM4DD_ISA {

constexpr int kVectorBytes = MIM4DD_VECTOR_BYTES;
constexpr bool kManyRegisters = MIM4DD_REGISTERS == 32;

template <typename T>
struct Micro {
  // Aligned as numbers are, so that it can be anywhere among them. Vectors alias their elements.
  typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(T))));
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  // A tile of the result: rows come from `a` one number at a time, columns from `b` as vectors.
  static constexpr int kRows = kManyRegisters ? 8 : 4, kVectors = 2, kColumns = kVectors * kLanes;
  // Depths are multiples of this.
  static constexpr int kSteps = kLanes < 4 ? kLanes : 4;
  // Sums are formed in runs of so many terms: in one run of all, float32 would round too much. A
  // run costs a tile read and written. Gradients of filters are sums over images, the longest ones.
  static constexpr int kBlocksRun = 32, kRowsRun = 32;

  static MIM4DD_INLINE void load(Vector& to, const T* from) {
    to = *reinterpret_cast<const Vector*>(from);
  }
  static MIM4DD_INLINE void store(T* to, const Vector& from) {
    *reinterpret_cast<Vector*>(to) = from;
  }
  // The vector at a channel, with zeros after the last one.
  static MIM4DD_INLINE void
  load_channels(Vector& to, const T* pixel, int64_t channel, int64_t channels) {
    if (channel + kLanes <= channels) return load(to, pixel + channel);
    T part[kLanes] = {};
    for (int64_t i = channel; i < channels; ++i) part[i - channel] = pixel[i];
    load(to, part);
  }
  static MIM4DD_INLINE void
  store_channels(T* pixel, int64_t channel, int64_t channels, const Vector& from) {
    if (channel + kLanes <= channels) return store(pixel + channel, from);
    T part[kLanes];
    store(part, from);
    for (int64_t i = channel; i < channels; ++i) pixel[i] = part[i - channel];
  }

  // c (kRows, kColumns) += a b, with b (depth, kColumns) and `a` as blocks of kLanes of the depth,
  // each (kRows, kLanes): as vectors along the depth are written.
  static MIM4DD_INLINE void multiply_blocks(T* c, const T* a, const T* b, int64_t depth, bool add) {
    while (depth > 0) {
      Vector sum[kRows][kVectors] = {};
      const int64_t end = depth > kBlocksRun ? depth - kBlocksRun : 0;
      for (; depth >= end + kLanes; depth -= kLanes, a += kRows * kLanes) {
        for (int k = 0; k < kLanes; k += kSteps, b += kSteps * kColumns) {
          advance<kLanes, 1>(sum, a + k, b);
        }
      }
      for (; depth > end; depth -= kSteps, a += kSteps, b += kSteps * kColumns) {
        advance<kLanes, 1>(sum, a, b);
      }
      if (add) accumulate(sum, c);
      write(c, sum);
      add = true;
    }
  }

  // The same with a (depth, kWidth), of which kRows columns are used.
  template <int kWidth>
  static MIM4DD_INLINE void multiply_rows(T* c, const T* a, const T* b, int64_t depth, bool add) {
    while (depth > 0) {
      Vector sum[kRows][kVectors] = {};
      const int64_t end = depth > kRowsRun ? depth - kRowsRun : 0;
      for (; depth > end; depth -= kSteps, a += kSteps * kWidth, b += kSteps * kColumns) {
        advance<1, kWidth>(sum, a, b);
      }
      if (add) accumulate(sum, c);
      write(c, sum);
      add = true;
    }
  }

 private:
  using Sums = Vector[kRows][kVectors];

  template <int kRowStride, int kDepthStride>
  static MIM4DD_INLINE void advance(Sums& sum, const T* a, const T* b) {
#pragma GCC unroll 4
    for (int k = 0; k < kSteps; ++k) {
      Vector right[kVectors];
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) load(right[n], b + k * kColumns + n * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        // Subtracting a zero vector is how a number becomes a vector. It changes no number, -0
        // neither, so compilers leave nothing of it but the copy into all lanes.
        const Vector left = a[m * kRowStride + k * kDepthStride] - Vector{};
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) sum[m][n] += left * right[n];
      }
    }
  }
  static MIM4DD_INLINE void accumulate(Sums& sum, const T* c) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        Vector old;
        load(old, c + m * kColumns + n * kLanes);
        sum[m][n] += old;
      }
    }
  }
  static MIM4DD_INLINE void write(T* c, const Sums& sum) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) store(c + m * kColumns + n * kLanes, sum[m][n]);
    }
  }
};

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
