// Group norm + ReLU + average pool on a CPU: the operators. docs/math.md has the formulas.
#include "norm_relu_pool.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "dispatch.h"

namespace mim4dd {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Memory order (B, H, W, C), and not that of (B, C, H, W) at the same time.
bool is_channels_last(const Tensor& input) {
  if (input.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (input.size(dim) != 1 && input.stride(dim) != expected) return false;
    expected *= input.size(dim);
  }
  return true;
}

PoolShape shape_of(const Tensor& input, int64_t groups, int64_t pool) {
  STD_TORCH_CHECK(input.dim() == 4, "norm_relu_pool: input must be 4-d, got ", input.dim(), "-d");
  PoolShape shape{input.size(0), input.size(1), input.size(2), input.size(3), groups, pool};
  STD_TORCH_CHECK(
      groups > 0 && shape.channels % groups == 0, "norm_relu_pool: num_groups must divide ",
      shape.channels, " channels, got ", groups);
  STD_TORCH_CHECK(pool > 0, "norm_relu_pool: pool must be positive, got ", pool);
  // A window that fits nowhere is like the smallest of its kind, whose area does not overflow.
  shape.pool = std::min(pool, std::max(shape.height, shape.width) + 1);
  return shape;
}

// One op's inputs: images in the layout and the type of `input`, of which the kernels convert
// pieces (norm_relu_pool_pieces.h), and numbers by channel in the type that is computed in.
class Call {
 public:
  Call(const Tensor& input, int64_t groups, int64_t pool)
      : shape(shape_of(input, groups, pool)),
        format(is_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous),
        stored(input.scalar_type()),
        wide(stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float),
        device_(input.device()) {}

  bool channels_last() const { return format == MemoryFormat::ChannelsLast; }
  bool empty() const { return shape.batch * shape.channels * shape.pixels() == 0; }
  std::vector<int64_t> in_sizes() const {
    return {shape.batch, shape.channels, shape.height, shape.width};
  }
  std::vector<int64_t> out_sizes() const {
    return {shape.batch, shape.channels, shape.out_height(), shape.out_width()};
  }

  Tensor image(const Tensor& given, const std::vector<int64_t>& sizes, const char* name) const {
    bool fits = given.dim() == 4 && given.scalar_type() == stored && given.device() == device_;
    for (int64_t i = 0; fits && i < 4; ++i) fits = given.size(i) == sizes[i];
    STD_TORCH_CHECK(
        fits, "norm_relu_pool: ", name, " must be (", sizes[0], ", ", sizes[1], ", ", sizes[2],
        ", ", sizes[3], ") with dtype and device of input");
    return torch::stable::contiguous(given, format);
  }
  std::optional<Tensor> image(
      const std::optional<Tensor>& given,
      const std::vector<int64_t>& sizes,
      const char* name) const {
    if (!given) return std::nullopt;
    return image(*given, sizes, name);
  }
  std::optional<Tensor> numbers(const std::optional<Tensor>& given, int64_t count, const char* name)
      const {
    if (!given) return std::nullopt;
    STD_TORCH_CHECK(
        given->numel() == count && given->device() == device_, "norm_relu_pool: ", name,
        " must have ", count, " elements on the device of input, got ", given->numel());
    return torch::stable::contiguous(
        given->scalar_type() == wide ? *given : torch::stable::to(*given, wide));
  }
  Tensor new_image(const std::vector<int64_t>& sizes, bool wanted = true) const {
    return wanted ? make(sizes, stored, format) : make({0}, stored);
  }
  Tensor new_numbers(const std::vector<int64_t>& sizes) const { return make(sizes, wide); }

  PoolShape shape;
  MemoryFormat format;
  ScalarType stored, wide;

 private:
  Tensor make(
      const std::vector<int64_t>& sizes,
      ScalarType type,
      MemoryFormat memory_format = MemoryFormat::Contiguous) const {
    return torch::stable::empty(sizes, type, std::nullopt, device_, std::nullopt, memory_format);
  }

  torch::stable::Device device_;
};

template <typename T>
const T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// What both derivatives read: the operands of the forward pass, its statistics, and grad_out.
struct Saved {
  Saved(
      const Call& call,
      const Tensor& grad_out,
      const Tensor& input,
      const std::optional<Tensor>& weight,
      const std::optional<Tensor>& bias,
      const Tensor& mean,
      const Tensor& rstd)
      : x(call.image(input, call.in_sizes(), "input")),
        upstream(call.image(grad_out, call.out_sizes(), "grad_out")),
        w(call.numbers(weight, call.shape.channels, "weight")),
        b(call.numbers(bias, call.shape.channels, "bias")),
        mu(call.numbers(mean, call.shape.batch * call.shape.groups, "mean")),
        r(call.numbers(rstd, call.shape.batch * call.shape.groups, "rstd")) {}

  template <typename Stored>
  NormInputs<Stored> operands() const {
    using T = Arithmetic<Stored>;
    return {x.const_data_ptr<Stored>(), pointer<T>(w), pointer<T>(b)};
  }

  Tensor x, upstream;
  std::optional<Tensor> w, b, mu, r;
};

template <typename T>
T* pointer_if(const Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr<T>() : nullptr;
}

// The sum over samples of (B, C), in their order and in double; (0,) where it is not wanted.
Tensor over_samples(
    const Call& call,
    const Tensor& of_samples,
    const std::optional<Tensor>& like,
    bool wanted) {
  const ScalarType type = like ? like->scalar_type() : call.wide;
  const int64_t channels = wanted ? call.shape.channels : 0;
  const Tensor result = call.new_numbers({channels});
  if (!wanted) return type == call.wide ? result : torch::stable::to(result, type);
  MIM4DD_DISPATCH_FLOATING(call.wide, "norm_relu_pool", [&] {
    const auto* from = of_samples.const_data_ptr<scalar_t>();
    std::vector<double> sum(channels, 0.0);
    for (int64_t sample = 0; sample < (call.empty() ? 0 : call.shape.batch); ++sample) {
      for (int64_t c = 0; c < channels; ++c) sum[c] += from[sample * channels + c];
    }
    auto* const to = result.mutable_data_ptr<scalar_t>();
    for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<scalar_t>(sum[c]);
  });
  return type == call.wide ? result : torch::stable::to(result, type);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_cpu(
    Tensor input,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    int64_t num_groups,
    int64_t pool,
    double eps) {
  const Call call(input, num_groups, pool);
  const PoolShape& shape = call.shape;
  const Tensor x = call.image(input, call.in_sizes(), "input");
  const auto w = call.numbers(weight, shape.channels, "weight");
  const auto b = call.numbers(bias, shape.channels, "bias");
  const Tensor out = call.new_image(call.out_sizes());
  const Tensor mean = call.new_numbers({shape.batch, num_groups});
  const Tensor rstd = call.new_numbers({shape.batch, num_groups});
  if (call.empty()) return {out, mean, rstd};
  MIM4DD_DISPATCH_FLOATING_AND_HALF(call.stored, "norm_relu_pool", [&] {
    using T = Arithmetic<scalar_t>;
    const ForwardArguments<scalar_t> args{
        {x.const_data_ptr<scalar_t>(), pointer<T>(w), pointer<T>(b)},
        eps,
        out.mutable_data_ptr<scalar_t>(),
        mean.mutable_data_ptr<T>(),
        rstd.mutable_data_ptr<T>()};
    const auto& kernel = kernels<NormReluPool<scalar_t>>();
    (call.channels_last() ? kernel.forward_pixels : kernel.forward_planes)(shape, args);
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_bwd_cpu(
    Tensor grad_out,
    Tensor input,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    Tensor mean,
    Tensor rstd,
    int64_t num_groups,
    int64_t pool,
    bool of_input,
    bool of_weight,
    bool of_bias) {
  const Call call(input, num_groups, pool);
  const PoolShape& shape = call.shape;
  const Saved saved(call, grad_out, input, weight, bias, mean, rstd);
  const Tensor grad_input = call.new_image(call.in_sizes(), of_input);
  const Tensor of_weights = call.new_numbers({shape.batch, shape.channels});
  const Tensor of_biases = call.new_numbers({shape.batch, shape.channels});
  if (!call.empty()) {
    MIM4DD_DISPATCH_FLOATING_AND_HALF(call.stored, "norm_relu_pool_bwd", [&] {
      using T = Arithmetic<scalar_t>;
      const BackwardArguments<scalar_t> args{
          saved.operands<scalar_t>(),
          pointer<T>(saved.mu),
          pointer<T>(saved.r),
          saved.upstream.const_data_ptr<scalar_t>(),
          pointer_if<scalar_t>(grad_input, of_input),
          of_weights.mutable_data_ptr<T>(),
          of_biases.mutable_data_ptr<T>()};
      const auto& kernel = kernels<NormReluPool<scalar_t>>();
      (call.channels_last() ? kernel.backward_pixels : kernel.backward_planes)(shape, args);
    });
  }
  return {
      grad_input, over_samples(call, of_weights, weight, of_weight),
      over_samples(call, of_biases, bias, of_bias)};
}

std::tuple<Tensor, Tensor, Tensor> norm_relu_pool_bwd_bwd_cpu(
    std::optional<Tensor> tangent_input,
    std::optional<Tensor> tangent_weight,
    std::optional<Tensor> tangent_bias,
    Tensor grad_out,
    Tensor input,
    std::optional<Tensor> weight,
    std::optional<Tensor> bias,
    Tensor mean,
    Tensor rstd,
    int64_t num_groups,
    int64_t pool,
    bool of_grad_out,
    bool of_input,
    bool of_weight) {
  const Call call(input, num_groups, pool);
  const PoolShape& shape = call.shape;
  const Saved saved(call, grad_out, input, weight, bias, mean, rstd);
  const auto along = call.image(tangent_input, call.in_sizes(), "tangent_input");
  const auto along_w = call.numbers(tangent_weight, shape.channels, "tangent_weight");
  const auto along_b = call.numbers(tangent_bias, shape.channels, "tangent_bias");
  const Tensor grad_grad_out = call.new_image(call.out_sizes(), of_grad_out);
  const Tensor grad_input = call.new_image(call.in_sizes(), of_input);
  const Tensor of_weights = call.new_numbers({shape.batch, shape.channels});
  if (!call.empty()) {
    MIM4DD_DISPATCH_FLOATING_AND_HALF(call.stored, "norm_relu_pool_bwd_bwd", [&] {
      using T = Arithmetic<scalar_t>;
      const SecondArguments<scalar_t> args{
          saved.operands<scalar_t>(),
          pointer<T>(saved.mu),
          pointer<T>(saved.r),
          saved.upstream.const_data_ptr<scalar_t>(),
          pointer<scalar_t>(along),
          pointer<T>(along_w),
          pointer<T>(along_b),
          pointer_if<scalar_t>(grad_grad_out, of_grad_out),
          pointer_if<scalar_t>(grad_input, of_input),
          of_weights.mutable_data_ptr<T>()};
      const auto& kernel = kernels<NormReluPool<scalar_t>>();
      (call.channels_last() ? kernel.second_pixels : kernel.second_planes)(shape, args);
    });
  }
  return {grad_grad_out, grad_input, over_samples(call, of_weights, weight, of_weight)};
}

STABLE_TORCH_LIBRARY_IMPL(mim4dd, CPU, m) {
  m.impl("norm_relu_pool", TORCH_BOX(&norm_relu_pool_cpu));
  m.impl("norm_relu_pool_bwd", TORCH_BOX(&norm_relu_pool_bwd_cpu));
  m.impl("norm_relu_pool_bwd_bwd", TORCH_BOX(&norm_relu_pool_bwd_bwd_cpu));
}

}  // namespace mim4dd
