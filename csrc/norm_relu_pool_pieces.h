// What one task works on: a group of planes, or a block of channels of one sample. Of images in
// half precision it works on a copy in float32, which fits a second cache unless a group is large.
// Copies of whole images would travel to memory and back.
#pragma once

#include <cstdint>
#include <type_traits>

#include "half.h"
#include "norm_relu_pool.h"
#include "parallel.h"

namespace mim4dd {
namespace MIM4DD_ISA {

// Where it lies in an image: runs of numbers from `first` on, `stride` apart.
struct Runs {
  int64_t first, count, length, stride;

  int64_t size() const { return count * length; }
};

// In images of the size of the input, and in those of the size of the output.
struct Piece {
  Runs in, out;
};

template <typename Stored>
constexpr bool kCopied = !std::is_same_v<Stored, Arithmetic<Stored>>;

// Pieces in the type that is computed in; copies have their runs one behind the other.
template <typename Stored>
class Copies {
 public:
  using T = Arithmetic<Stored>;

  explicit Copies(T* memory) : free_(memory) {}

  const T* load(const Stored* image, const Runs& runs) {
    if constexpr (kCopied<Stored>) {
      T* const copy = room(const_cast<Stored*>(image), runs);
      for (int64_t i = 0; copy != nullptr && i < runs.count; ++i) {
        const Stored* const from = image + runs.first + i * runs.stride;
        T* const to = copy + i * runs.length;
#pragma omp simd
        for (int64_t j = 0; j < runs.length; ++j) to[j] = widened(from[j]);
      }
      return copy;
    } else {
      return image == nullptr ? nullptr : image + runs.first;
    }
  }
  // For results; store() puts them where they belong.
  T* room(Stored* image, const Runs& runs) {
    if (image == nullptr) return nullptr;
    if constexpr (kCopied<Stored>) {
      T* const copy = free_;
      free_ += runs.size();
      return copy;
    } else {
      return image + runs.first;
    }
  }
  void store(const T* copy, Stored* image, const Runs& runs) const {
    if constexpr (kCopied<Stored>) {
      for (int64_t i = 0; image != nullptr && i < runs.count; ++i) {
        const T* const from = copy + i * runs.length;
        Stored* const to = image + runs.first + i * runs.stride;
#pragma omp simd
        for (int64_t j = 0; j < runs.length; ++j) to[j] = narrowed<Stored>(from[j]);
      }
    }
  }

 private:
  T* free_;
};

// How many numbers the copies of a piece take.
template <typename Arguments>
int64_t copied_numbers(const Arguments&, const Piece& piece) {
  if (!kCopied<typename Arguments::Image>) return 0;
  return Arguments::kInputImages * piece.in.size() + Arguments::kOutputImages * piece.out.size();
}

// body(arguments) with the images of one piece in place of the whole ones.
template <typename Stored, typename Body>
void with_piece(
    const ForwardArguments<Stored>& args,
    const Piece& piece,
    Arithmetic<Stored>* memory,
    const Body& body) {
  Copies<Stored> copies(memory);
  const ForwardArguments<Arithmetic<Stored>> of_piece{
      {copies.load(args.input, piece.in), args.weight, args.bias},
      args.eps,
      copies.room(args.out, piece.out),
      args.mean,
      args.rstd};
  body(of_piece);
  copies.store(of_piece.out, args.out, piece.out);
}

template <typename Stored, typename Body>
void with_piece(
    const BackwardArguments<Stored>& args,
    const Piece& piece,
    Arithmetic<Stored>* memory,
    const Body& body) {
  Copies<Stored> copies(memory);
  const BackwardArguments<Arithmetic<Stored>> of_piece{
      {copies.load(args.input, piece.in), args.weight, args.bias},
      args.mean,
      args.rstd,
      copies.load(args.grad_out, piece.out),
      copies.room(args.grad_input, piece.in),
      args.grad_weight_of,
      args.grad_bias_of};
  body(of_piece);
  copies.store(of_piece.grad_input, args.grad_input, piece.in);
}

template <typename Stored, typename Body>
void with_piece(
    const SecondArguments<Stored>& args,
    const Piece& piece,
    Arithmetic<Stored>* memory,
    const Body& body) {
  Copies<Stored> copies(memory);
  const SecondArguments<Arithmetic<Stored>> of_piece{
      {copies.load(args.input, piece.in), args.weight, args.bias},
      args.mean,
      args.rstd,
      copies.load(args.grad_out, piece.out),
      copies.load(args.tangent, piece.in),
      args.weight_tangent,
      args.bias_tangent,
      copies.room(args.grad_grad_out, piece.out),
      copies.room(args.grad_input, piece.in),
      args.grad_weight_of};
  body(of_piece);
  copies.store(of_piece.grad_grad_out, args.grad_grad_out, piece.out);
  copies.store(of_piece.grad_input, args.grad_input, piece.in);
}

}  // namespace MIM4DD_ISA
}  // namespace mim4dd
