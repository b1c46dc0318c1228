// Into what sizes passes over logits are cut.
#pragma once

#include <atomic>
#include <cstdint>

namespace mim4dd {

// Rows that a tile and a segment are multiples of, in memory: panels of rows, 32 with AVX-512, fill
// them.
constexpr int64_t kRowsTogether = 32;

// The largest, for all calls of a process. A product packs its right side, a library both sides, at
// a cost that falls with the size of the other one; a block of rows by columns in float32 is half
// of a second cache. Only tests set others (module.cpp): few queries and keys are several tiles
// then, and several waves. A call reads each of them once.
struct TileSizes {
  std::atomic<int64_t> rows{256}, columns{512};
  // What a wave holds where a tile per thread is less.
  std::atomic<int64_t> wave_bytes{int64_t{4} << 20};
};

inline TileSizes tile_sizes;

}  // namespace mim4dd
