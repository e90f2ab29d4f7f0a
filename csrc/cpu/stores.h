// Whether outputs go through the cache, and how they are written either way.
#pragma once

#include <initializer_list>

#include "matrix.h"

namespace pgm_fast::cpu {

// A store that bypasses the cache saves reading the line first, a third of a copy's traffic, and costs a miss to
// whoever reads the output next. It pays once the operands of a call are far larger than what a core's cache keeps for
// that reader.
constexpr int64_t kBypassBytes = int64_t{16} << 20;

inline bool bypasses_cache(int64_t rows, std::initializer_list<Matrix> operands) {
  int64_t bytes = 0;
  for (const Matrix& m : operands) {
    if (m.dtype != Dtype::float32) return false;
    bytes += rows * m.width * static_cast<int64_t>(sizeof(float));
    // whole vectors only, at aligned addresses in every row
    if (m.width % 16 != 0 || reinterpret_cast<uintptr_t>(m.data) % 64 != 0) return false;
  }
  return bytes >= kBypassBytes;
}

// How a kernel writes an output: store(part, x, to).
struct Cached {
  template <class Part, class V>
  void operator()(Part part, V x, typename V::value* to) const {
    part.store(x, to);
  }
};
struct Streamed {
  template <class Part, class V>
  void operator()(Part, V x, typename V::value* to) const {
    x.stream(to);
  }
};

template <class Body>
inline void with_stores(bool bypass, Body&& body) {
  if (bypass) {
    body(Streamed{});
  } else {
    body(Cached{});
  }
}

}  // namespace pgm_fast::cpu
