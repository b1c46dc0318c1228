// What all passes over channels-last memory share: blocks of channels, numbers per channel,
// windows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "norm_relu_pool.h"
#include "norm_relu_pool_pieces.h"
#include "parallel.h"

namespace mim4dd {
namespace MIM4DD_ISA {
namespace pixels {

// A block of one sample is to stay in a second cache, and to fill lines of memory.
constexpr int64_t kBlockBytes = int64_t{512} << 10, kLineBytes = 64;
// Channels [first, first + channels) of one sample, whose pixels are `stride` numbers apart.
struct Block {
  const PoolShape& shape;
  int64_t sample, first, channels, stride;

  int64_t first_group() const { return first / shape.group_channels(); }
  int64_t groups() const { return channels / shape.group_channels(); }
  int64_t statistic(int64_t group) const { return sample * shape.groups + first_group() + group; }
  Piece piece() const { return {runs(shape.pixels()), runs(shape.out_pixels())}; }

 private:
  Runs runs(int64_t pixels) const {
    return {sample * pixels * shape.channels + first, pixels, channels, shape.channels};
  }
};

// Arrays of one number per channel of a block.
template <typename T>
class Arrays {
 public:
  Arrays(int64_t channels, int64_t count)
      : stride_(round_up(channels, 16)), values_(stride_ * count, T(0)) {}
  T* operator[](int64_t i) { return values_.data() + i * stride_; }

 private:
  int64_t stride_;
  Workspace<T> values_;
};

// Pixels whose sum is one in the type that is computed in, before it is added to one in double.
constexpr int64_t kPart = 64;

enum Row { kMean, kScale, kShift, kFirstFree };

// The pixels of a window together where its size is known: then what is per channel is loaded once
// for all four. visit(pixels, output pixel or -1, whether first and last of its output pixel).
// end_part() every so many pixels.
template <typename Visit, typename EndPart>
MIM4DD_INLINE void
visit_pixels(const PoolShape& shape, const Visit& visit, const EndPart& end_part) {
  const int64_t width = shape.width, pool = shape.pool, out_width = shape.out_width();
  const int64_t part = std::max<int64_t>(1, kPart / (pool * pool));
  const auto single = [&](int64_t y, int64_t x) MIM4DD_INLINE_LAMBDA {
    visit(std::array<int64_t, 1>{y * width + x}, int64_t{-1}, true, true);
  };
  for (int64_t row = 0; row < shape.out_height(); ++row) {
    for (int64_t column = 0; column < out_width; ++column) {
      const int64_t corner = row * pool * width + column * pool, out = row * out_width + column;
      if (pool == 2) {
        visit(
            std::array<int64_t, 4>{corner, corner + 1, corner + width, corner + width + 1}, out,
            true, true);
      } else {
        for (int64_t i = 0; i < pool * pool; ++i) {
          const int64_t pixel = corner + i / pool * width + i % pool;
          visit(std::array<int64_t, 1>{pixel}, out, i == 0, i == pool * pool - 1);
        }
      }
      if (column % part == part - 1) end_part();
    }
    for (int64_t y = row * pool; y < (row + 1) * pool; ++y) {
      for (int64_t x = out_width * pool; x < width; ++x) single(y, x);
    }
    end_part();
  }
  for (int64_t y = shape.out_height() * pool; y < shape.height; ++y) {
    for (int64_t x = 0; x < width; ++x) single(y, x);
    end_part();
  }
}

template <typename Visit>
MIM4DD_INLINE void visit_pixels(const PoolShape& shape, const Visit& visit) {
  visit_pixels(shape, visit, [] {});
}

// sums += part, and part is 0 again: rounding grows with the length of a part only.
template <typename T>
MIM4DD_INLINE void fold(T* __restrict part, double* __restrict sums, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    sums[c] += static_cast<double>(part[c]);
    part[c] = T(0);
  }
}

// The rows kMean, kScale, kShift: the affine map before the ReLU.
template <typename T>
void fill_affine(
    const Block& block,
    const NormInputs<T>& args,
    const T* mean,
    const T* rstd,
    Arrays<T>& rows) {
  const int64_t channels = block.shape.group_channels();
  for (int64_t group = 0; group < block.groups(); ++group) {
    const T of_group = mean[block.statistic(group)], scale = rstd[block.statistic(group)];
    for (int64_t c = group * channels; c < (group + 1) * channels; ++c) {
      rows[kMean][c] = of_group;
      rows[kScale][c] = args.weight_of(block.first + c) * scale;
      rows[kShift][c] = args.bias_of(block.first + c);
    }
  }
}

// body(block, arguments with its images) for all blocks of whole groups of every sample.
template <typename Arguments, typename Body>
void for_each_block(const PoolShape& shape, const Arguments& args, const Body& body) {
  using T = typename Arguments::T;
  using Stored = typename Arguments::Image;
  const int64_t channels = shape.group_channels();
  const int64_t least = std::max<int64_t>(1, kLineBytes / static_cast<int64_t>(sizeof(Stored)));
  const int64_t group_bytes = shape.group_size() * static_cast<int64_t>(sizeof(T));
  const int64_t line_groups = divide_up(least, channels);
  int64_t groups = std::max(line_groups, kBlockBytes / group_bytes / line_groups * line_groups);
  // Samples alone may be too few for all threads.
  const int64_t threads = num_threads();
  const int64_t blocks = std::max<int64_t>(1, divide_up(2 * threads, shape.batch));
  if (threads > 1 && shape.batch % threads != 0) {
    const int64_t share = divide_up(shape.groups, blocks);
    groups = std::min(groups, round_up(share, line_groups));
  }
  groups = std::min(groups, shape.groups);
  const int64_t per_sample = divide_up(shape.groups, groups);
  const auto block_at = [&](int64_t i) {
    const int64_t first = i % per_sample * groups;
    const int64_t width = std::min(groups, shape.groups - first) * channels;
    const int64_t stride = kCopied<Stored> ? width : shape.channels;
    return Block{shape, i / per_sample, first * channels, width, stride};
  };
  parallel_for(shape.batch * per_sample, 1, [&](int64_t begin, int64_t end) {
    const Workspace<T> copies(copied_numbers(args, block_at(0).piece()));
    for (int64_t i = begin; i < end; ++i) {
      const Block block = block_at(i);
      with_piece(
          args, block.piece(), copies.data(), [&](const auto& of_block) { body(block, of_block); });
    }
  });
}

}  // namespace pixels
}  // namespace MIM4DD_ISA
}  // namespace mim4dd
