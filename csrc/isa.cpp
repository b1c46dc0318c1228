#include "isa.h"

#include <cstring>
#include <initializer_list>

namespace mim4dd {

Isa chosen_isa = Isa::kBaseline;

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  // What isa/*.cpp are compiled with; setup.py names the flags.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kBaseline;
}

bool choose_isa(const char* name) {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2, Isa::kBaseline}) {
    if (!runs_here(isa) || (name != nullptr && std::strcmp(name, name_of(isa)) != 0)) continue;
    chosen_isa = isa;
    return true;
  }
  return false;
}

}  // namespace mim4dd
