// The cumulative softmax of one row and its derivative, as scans that the kernels run in two passes: from the left, which forms the
// exponentials and their prefix sums, and from the right, in which complement gates, outputs and gradients are formed together. What
// passes between them lives in scratch rows that stay in the first-level cache.
#pragma once

#include <limits>

#include "matrix.h"
#include "stores.h"

namespace pgm_fast::cpu {

// A running sum whose rounding errors do not grow with the row: plain over kBlock vectors, whose sum is small beside that of the row,
// and from block to block with the rounding error kept (Knuth's two-sum).
template <class V>
struct RunningSum {
  static constexpr int64_t kBlock = 16;
  V high = V::set(0), low = V::set(0);

  void add_product(V x, V y) { low = V::fma(x, y, low); }
  void settle() {
    const V sum = high + low;
    const V added = sum - high;
    low = (high - (sum - added)) + (low - added);
    high = sum;
  }
  typename V::value total() const { return (high + low).sum(); }
};

// Sums up to and with each element, for vectors that come from the left, and from each element on, for vectors from the right.
template <class V>
struct PrefixSum : RunningSum<V> {
  V step(V x) {
    const V inside = this->low + x.scan_from_left();
    this->low = inside.last();
    return this->high + inside;
  }
};
template <class V>
struct SuffixSum : RunningSum<V> {
  V step(V x) {
    const V inside = this->low + x.scan_from_right();
    this->low = inside.first();
    return this->high + inside;
  }
};

// Calls body(k, part) for the whole vectors of [0, size) from the left and then for the rest; settles the running sums.
template <class V, class Body, class... Sums>
inline void from_left(int64_t size, Body&& body, Sums&... sums) {
  constexpr int64_t block = RunningSum<V>::kBlock * V::width;
  const int64_t whole = size / V::width * V::width;
  for (int64_t begin = 0; begin < whole; begin += block) {
    const int64_t end = std::min(whole, begin + block);
    for (int64_t k = begin; k < end; k += V::width) body(k, Full<V>{});
    (sums.settle(), ...);
  }
  if (whole < size) body(whole, Partial<V>{size - whole});
}

// The same from the right; the lanes past the end are zero.
template <class V, class Body, class... Sums>
inline void from_right(int64_t size, Body&& body, Sums&... sums) {
  constexpr int64_t block = RunningSum<V>::kBlock * V::width;
  const int64_t whole = size / V::width * V::width;
  if (whole < size) body(whole, Partial<V>{size - whole});
  for (int64_t end = whole; end > 0; end -= block) {
    const int64_t begin = std::max<int64_t>(0, end - block);
    for (int64_t k = end - V::width; k >= begin; k -= V::width) body(k, Full<V>{});
    (sums.settle(), ...);
  }
}

// p = softmax(z / temperature) = e * scale, and its inclusive prefix sum = prefix * scale.
template <class V>
struct Exponentials {
  using T = typename V::value;
  T *e, *prefix;  // [m]
  V scale = V::set(0);

  // z_next is where this thread's next row will be.
  void compute(const T* z, const T* z_next, int64_t m, T temperature) {
    V largest = V::set(-std::numeric_limits<T>::infinity());
    T top = -std::numeric_limits<T>::infinity();
    int64_t k = 0;
    for (; k + V::width <= m; k += V::width) largest = V::max(largest, V::load(z + k));
    top = largest.largest();
    for (; k < m; ++k) top = std::max(top, z[k]);

    const V shift = V::set(top), inverse = V::set(T(1) / temperature);
    PrefixSum<V> sum;
    from_left<V>(
        m,
        [&](int64_t at, auto part) {
          prefetch(z_next + at);
          const V x = V::exp((part.load(z + at) - shift) * inverse);
          part.store(x, e + at);
          part.store(sum.step(x), prefix + at);
        },
        sum);
    scale = V::set(T(1) / prefix[m - 1]);
  }

  template <class Part>
  V gate(int64_t k, Part part) const {
    return V::min(V::set(1), part.load(prefix + k) * scale);
  }
};

// 1 - gate: the sum of what follows. It has its own scan, because 1 - gate has no correct digit where the gate is near 1.
template <class V>
struct Complement : RunningSum<V> {
  V step(V e, V scale) {
    const V inside = this->low + e.scan_from_right();
    const V following = this->high + inside.shift_left(this->low);
    this->low = inside.first();
    return V::min(V::set(1), following * scale);
  }
};

// The derivative of the cumulative softmax, from the right: s_k = sum of grad_gate from k on and <e, s>, then
// grad_z = p (s - <p, s>) / temperature.
template <class V>
struct GateGradient {
  using T = typename V::value;
  SuffixSum<V> suffix;
  RunningSum<V> dot;

  V step(V grad_gate, V e) {
    const V s = suffix.step(grad_gate);
    dot.add_product(s, e);
    return s;
  }
  void settle() {
    suffix.settle();
    dot.settle();
  }
  template <class Store>
  void finish(const T* s, const Exponentials<V>& softmax, int64_t m, T temperature, Store store, T* grad_z) const {
    const V mean = V::set(dot.total()) * softmax.scale, factor = softmax.scale * V::set(T(1) / temperature);
    for_each_vector<V>(m, [&](int64_t k, auto part) {
      store(part, part.load(softmax.e + k) * factor * (part.load(s + k) - mean), grad_z + k);
    });
  }
};

// The gates of a row and their complements, for gates that stand for several dimensions.
template <class V>
inline void gate_row(const Exponentials<V>& softmax, int64_t m, typename V::value* gate) {
  for_each_vector<V>(m, [&](int64_t k, auto part) { part.store(softmax.gate(k, part), gate + k); });
}
template <class V>
inline void complement_row(const Exponentials<V>& softmax, int64_t m, typename V::value* complement) {
  Complement<V> scan;
  from_right<V>(
      m, [&](int64_t k, auto part) { part.store(scan.step(part.load(softmax.e + k), softmax.scale), complement + k); }, scan);
}

// One value per chunk [gates] to one per dimension [d].
template <class T>
inline void expand(const T* gate, int64_t gates, int64_t d, T* expanded) {
  const int64_t chunk = d / gates;
  for (int64_t k = 0; k < gates; ++k) std::fill_n(expanded + k * chunk, chunk, gate[k]);
}

// The adjoint of expand, in place: [d] to [gates].
template <class T>
inline void chunk_sum(T* x, int64_t gates, int64_t d) {
  const int64_t chunk = d / gates;
  for (int64_t k = 0; k < gates; ++k) {
    T sum = 0;
    for (int64_t j = 0; j < chunk; ++j) sum += x[k * chunk + j];
    x[k] = sum;
  }
}

// The computation for a matrix of this dtype: double for float64, else float vectors.
template <class Run>
inline void dispatch(Dtype dtype, Run&& run) {
  if (dtype == Dtype::float64) {
    run(Lane<double>{});
  } else {
    run(Simd{});
  }
}

}  // namespace pgm_fast::cpu
