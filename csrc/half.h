// Half precision from and to float32 without a branch, so that loops become vector code on every
// instruction set; those of torch branch. Rounding is to nearest even, and a NaN stays a NaN.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "simd.h"

namespace mim4dd {

MIM4DD_INLINE float widened(c10::BFloat16 value) {
  return bit_cast<float>(uint32_t{value.x} << 16);
}

MIM4DD_INLINE float widened(c10::Half value) {
  constexpr uint32_t kExponent = 0x7C00u << 13, kRebias = (127u - 15) << 23;
  const uint32_t sign = (value.x & 0x8000u) << 16, bits = (value.x & 0x7FFFu) << 13;
  const uint32_t exponent = bits & kExponent, rebiased = bits + kRebias;
  // A subnormal number has no leading one, a float has: 2^-14 is added as bits and subtracted.
  const float normalised = bit_cast<float>(rebiased + (1u << 23)) - 6.103515625e-5f;
  const uint32_t finite = exponent == 0 ? bit_cast<uint32_t>(normalised) : rebiased;
  return bit_cast<float>(sign | (exponent == kExponent ? rebiased + kRebias : finite));
}

template <typename Stored>
Stored narrowed(float value);

template <>
MIM4DD_INLINE c10::BFloat16 narrowed(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1);
  const uint32_t half = (value != value ? bits | 0x400000u : rounded) >> 16;
  return {static_cast<uint16_t>(half), c10::BFloat16::from_bits()};
}

template <>
MIM4DD_INLINE c10::Half narrowed(float value) {
  constexpr uint32_t kInfinity = 0xFFu << 23, kOverflow = (127u + 16) << 23;
  constexpr uint32_t kSmallest = (127u - 14) << 23, kRebias = (127u - 15) << 23;
  const uint32_t bits = bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t special = magnitude > kInfinity ? 0x7E00u : 0x7C00u;
  // The last place of a number from 0.5 to 1 is 2^-24, that of a subnormal: the sum rounds there.
  const float shifted = bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - kRebias + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t finite = magnitude < kSmallest ? subnormal : normal;
  const uint32_t half = (bits & 0x80000000u) >> 16 | (magnitude >= kOverflow ? special : finite);
  return {static_cast<uint16_t>(half), c10::Half::from_bits()};
}

}  // namespace mim4dd
