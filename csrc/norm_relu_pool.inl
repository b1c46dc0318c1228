// Group norm + ReLU + average pool on vectors: two memory layouts, three derivatives.
#include "norm_relu_pool_pixels.inl"
#include "norm_relu_pool_pixels_second.inl"
#include "norm_relu_pool_planes.inl"
#include "norm_relu_pool_planes_second.inl"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename T>
constexpr NormReluPool<T> kNormReluPool{forward_planes<T>, backward_planes<T>, second_planes<T>,
                                        forward_pixels<T>, backward_pixels<T>, second_pixels<T>};

}  // namespace

MIM4DD_TABLE(NormReluPool, float)
MIM4DD_TABLE(NormReluPool, double)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
