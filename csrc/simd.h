// Loops that every compiler vectorises, and the functions that they call on each element.
#pragma once

#include <cstdint>
#include <cstring>

// What is called in a hot loop must become part of it, or the loop is no vector code; and what
// several instruction sets call must, or the linker would keep the code of one of them (isa.h).
#if defined(__GNUC__)
#define MIM4DD_INLINE inline __attribute__((always_inline))
#define MIM4DD_INLINE_LAMBDA __attribute__((always_inline))
// What is a function of its own keeps its registers, and its compile time, to itself.
#define MIM4DD_NOINLINE __attribute__((noinline))
#else
#define MIM4DD_INLINE inline
#define MIM4DD_INLINE_LAMBDA
#define MIM4DD_NOINLINE
#endif

namespace mim4dd {

template <typename To, typename From>
MIM4DD_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// exp(x) to 1 ulp for x up to 88 (float) or 709 (double); 0 where the result would be denormal, NaN
// for NaN. No branch and no call, so that the loops around it become vector code.
//
// x = n ln 2 + r, exp(x) = 2^n exp(r). Adding 1.5·2^(mantissa bits) rounds to an integer and leaves
// it in the low bits. They are moved as unsigned numbers: n is negative where x is.
MIM4DD_INLINE float vector_exp(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  float r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact times n
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;  // minimax polynomial of Cephes' expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t exponent = (bit_cast<uint32_t>(shifted) - 0x4B400000 + 127) << 23;
  return x < -87.3f ? 0.0f : p * bit_cast<float>(exponent);
}

MIM4DD_INLINE double vector_exp(double x) {
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;
  const double n = shifted - 6755399441055744.0;
  double r = x - n * 0.693145751953125;
  r -= n * 1.42860682030941723212e-6;
  double p = 1.0 / 6227020800.0;  // Taylor to r^13: |r| <= ln 2 / 2 leaves 4e-18
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const uint64_t exponent = (bit_cast<uint64_t>(shifted) - 0x4338000000000000 + 1023) << 52;
  return x < -708.3 ? 0.0 : p * bit_cast<double>(exponent);
}

// log(1 + t) for t in [0, 1]: 2 atanh(u), u = t / (2 + t) <= 1/3, by its series in u².
template <typename T>
MIM4DD_INLINE T vector_log1p(T t) {
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;  // (1/9)^kTerms is below an ulp
  const T u = t / (t + T(2));
  const T square = u * u;
  T series = T(1) / T(2 * kTerms + 1);
#if defined(__GNUC__)
#pragma GCC unroll 32  // or the loop around it would not become vector code
#endif
  for (int k = kTerms - 1; k >= 0; --k) series = series * square + T(1) / T(2 * k + 1);
  return T(2) * u * series;
}

}  // namespace mim4dd
