// Rows of tensors in any floating dtype, seen by the kernels as rows of float or double.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../common/matrix.h"
#include "simd.h"

namespace pgm_fast::cpu {

using pgm_fast::Dtype;
using pgm_fast::Matrix;

void to_float(const Matrix& from, int64_t row, float* to);
void from_float(const float* from, const Matrix& to, int64_t row);

// The row itself where the dtype is that of the computation, else its conversion into scratch.
inline const float* read(const Matrix& m, int64_t row, float* scratch) {
  if (m.dtype == Dtype::float32) return static_cast<const float*>(m.data) + row * m.width;
  to_float(m, row, scratch);
  return scratch;
}
inline const double* read(const Matrix& m, int64_t row, double*) {
  return static_cast<const double*>(m.data) + row * m.width;
}

// Where to compute a row of an output; finish() then moves it there, if that was not the output itself.
inline float* target(const Matrix& m, int64_t row, float* scratch) {
  return m.dtype == Dtype::float32 ? static_cast<float*>(m.data) + row * m.width : scratch;
}
inline double* target(const Matrix& m, int64_t row, double*) { return static_cast<double*>(m.data) + row * m.width; }
inline void finish(const Matrix& m, int64_t row, const float* computed) {
  if (m.dtype != Dtype::float32) from_float(computed, m, row);
}
inline void finish(const Matrix&, int64_t, const double*) {}

// Scratch rows of one thread, each 64-byte aligned and padded to a whole number of vectors.
template <class T>
class Scratch {
 public:
  Scratch(int rows, int64_t width) : stride_((width + kPad - 1) / kPad * kPad), storage_(rows * stride_ + kPad) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    first_ = reinterpret_cast<T*>((address + 63) / 64 * 64);
  }
  T* operator[](int row) { return first_ + row * stride_; }

 private:
  static constexpr int64_t kPad = 64 / sizeof(T);
  int64_t stride_;
  std::vector<T> storage_;
  T* first_;
};

// Calls body(k, n) for k = 0, width, 2 width, ...: n is a compile-time `Full` for whole vectors and the number of lanes
// for the rest. Lanes past the end are loaded as zeros, or as those of another vector; clear() makes them zeros.
template <class V>
struct Full {
  static V load(const typename V::value* from) { return V::load(from); }
  static V load(const typename V::value* from, V) { return V::load(from); }
  static void store(V x, typename V::value* to) { x.store(to); }
  static V clear(V x) { return x; }
};
template <class V>
struct Partial {
  int64_t n;
  V load(const typename V::value* from) const { return V::load(from, n); }
  void store(V x, typename V::value* to) const { x.store(to, n); }
  V load(const typename V::value* from, V rest) const { return V::load(from, n, rest); }
  V clear(V x) const { return x.clear_from(n); }
};
template <class V, class Body>
inline void for_each_vector(int64_t size, Body&& body) {
  int64_t k = 0;
  for (; k + V::width <= size; k += V::width) body(k, Full<V>{});
  if (k < size) body(k, Partial<V>{size - k});
}

// Splits [0, rows) over the threads of OpenMP (those of torch, whose runtime is loaded already).
template <class Body>
inline void parallel_rows(int64_t rows, int64_t cost_per_row, int threads, Body&& body) {
  // elements that are worth a thread: twice as many take 10 us on one and 7 us on two
  constexpr int64_t kGrain = 8192;
  const int64_t useful = std::max<int64_t>(1, rows * cost_per_row / kGrain);
  const int64_t parts = std::min<int64_t>({static_cast<int64_t>(threads), useful, std::max<int64_t>(rows, 1)});
  if (parts == 1) {
    body(int64_t{0}, rows);
    return;
  }
  const int64_t share = (rows + parts - 1) / parts;
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * share;
    const int64_t end = std::min(rows, begin + share);
    if (begin < end) body(begin, end);
  }
}

}  // namespace pgm_fast::cpu
