// One binary for every CPU: the hot loops (*.inl) are compiled once per instruction set, by the
// files of isa/, each in a namespace of its own. Which one runs is chosen once, at load.
//
// Those files include no header of torch and no container: an inline function that two files
// compile becomes one, and were it the one for AVX-512, an older CPU would stop at it.
// tests/ops/test_isa.py checks the object files.
#pragma once

#include <cstdint>

namespace mim4dd {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The one that was chosen.
extern Isa chosen_isa;

inline const char* name_of(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

// Whether this CPU, and this build, can run it.
bool runs_here(Isa isa);

// Choose the widest that runs here, or the one with that name. Whether there was one.
bool choose_isa(const char* name);

// Functions of one room, compiled for one instruction set: a struct of pointers to them.
namespace baseline {
template <typename Table>
const Table& table();
}
#if defined(__x86_64__)
namespace avx2 {
template <typename Table>
const Table& table();
}
namespace avx512 {
template <typename Table>
const Table& table();
}
#endif

// The functions of one room for this CPU.
template <typename Table>
const Table& kernels() {
#if defined(__x86_64__)
  if (chosen_isa == Isa::kAvx512) return avx512::table<Table>();
  if (chosen_isa == Isa::kAvx2) return avx2::table<Table>();
#endif
  return baseline::table<Table>();
}

}  // namespace mim4dd

// In namespace MIM4DD_ISA: table<Name<...>>() of this instruction set is the constant kName<...>.
#define MIM4DD_TABLE(Name, ...)      \
  template <>                        \
  const Name<__VA_ARGS__>& table() { \
    return k##Name<__VA_ARGS__>;     \
  }
