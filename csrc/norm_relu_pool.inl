// Group norm + ReLU + average pool on vectors: two memory layouts, three derivatives.
#include "norm_relu_pool_pixels.inl"
#include "norm_relu_pool_pixels_second.inl"
#include "norm_relu_pool_planes.inl"
#include "norm_relu_pool_planes_second.inl"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace {

template <typename Stored>
constexpr NormReluPool<Stored> kNormReluPool{forward_planes<Stored>,  backward_planes<Stored>,
                                             second_planes<Stored>,   forward_pixels<Stored>,
                                             backward_pixels<Stored>, second_pixels<Stored>};

}  // namespace

MIM4DD_TABLE(NormReluPool, float)
MIM4DD_TABLE(NormReluPool, double)
MIM4DD_TABLE(NormReluPool, c10::BFloat16)
MIM4DD_TABLE(NormReluPool, c10::Half)

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
