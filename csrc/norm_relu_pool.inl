// Group norm + ReLU + average pool on vectors: two memory layouts, three derivatives.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "norm_relu_pool_pixels.inl"
#include "norm_relu_pool_pixels_second.inl"
#include "norm_relu_pool_planes.inl"
#include "norm_relu_pool_planes_second.inl"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename S>
constexpr NormReluPool<S> kNormReluPool{forward_planes<S>, backward_planes<S>, second_planes<S>,
                                        forward_pixels<S>, backward_pixels<S>, second_pixels<S>};

}  // namespace

MIM4DD_TABLE(NormReluPool, float)
MIM4DD_TABLE(NormReluPool, double)
MIM4DD_TABLE(NormReluPool, c10::BFloat16)
MIM4DD_TABLE(NormReluPool, c10::Half)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
