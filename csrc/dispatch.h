// The types of floating-point tensors: run a body with scalar_t one of them.
#pragma once

#include <torch/headeronly/core/Dispatch.h>

#include "arithmetic.h"

#define MIM4DD_DISPATCH_FLOATING(TYPE, NAME, ...)                          \
  THO_DISPATCH_SWITCH(                                                     \
      TYPE, NAME,                                                          \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__) \
          THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__))

#define MIM4DD_DISPATCH_FLOATING_AND_HALF(TYPE, NAME, ...)                            \
  THO_DISPATCH_SWITCH(                                                                \
      TYPE, NAME,                                                                     \
      THO_DISPATCH_CASE(torch::headeronly::ScalarType::Float, __VA_ARGS__)            \
          THO_DISPATCH_CASE(torch::headeronly::ScalarType::Double, __VA_ARGS__)       \
              THO_DISPATCH_CASE(torch::headeronly::ScalarType::BFloat16, __VA_ARGS__) \
                  THO_DISPATCH_CASE(torch::headeronly::ScalarType::Half, __VA_ARGS__))
