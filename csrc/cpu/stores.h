// Whether outputs go through the cache, and the loop that writes a row either way.
#pragma once

#include <initializer_list>

#include "matrix.h"

namespace pgm_fast::cpu {

// A store that bypasses the cache saves reading the line first, a third of a copy's traffic, and costs a miss to whoever reads the
// output next. It pays once the operands of a call are far larger than what a core's cache keeps for that reader.
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

// body(k, part, store): part loads from (and stores to) cached rows, store(x, to) writes an output.
template <class V, class Body>
inline void write_row(int64_t d, bool bypass, Body&& body) {
  if (bypass) {
    const auto stream = [](V x, typename V::value* to) { x.stream(to); };
    for (int64_t k = 0; k < d; k += V::width) body(k, Full<V>{}, stream);
    return;
  }
  for_each_vector<V>(d, [&](int64_t k, auto part) {
    body(k, part, [&](V x, typename V::value* to) { part.store(x, to); });
  });
}

}  // namespace pgm_fast::cpu
