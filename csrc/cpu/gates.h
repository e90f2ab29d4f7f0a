// The cumulative softmax of one row and its derivative. Everything here lives in scratch rows that stay in the first-level cache.
#pragma once

#include <limits>

#include "matrix.h"

namespace pgm_fast::cpu {

// A running sum with its rounding errors (Knuth's two-sum): thousands of blocks in float err like a few.
template <class V>
struct RunningSum {
  V high = V::set(0), low = V::set(0);

  void add(V x) {
    const V sum = high + x;
    const V added = sum - high;
    low = low + ((high - (sum - added)) + (x - added));
    high = sum;
  }
  V plus(V x) const { return high + (low + x); }
  typename V::value total() const { return (high + low).sum(); }
};

// p = softmax(z / temperature), gate = inclusive prefix sum of p, complement = exclusive suffix sum of p, all [m].
// The complement has its own scan: 1 - gate has no correct digit where the gate is near 1.
template <class V>
inline void cumsoftmax(const typename V::value* z, int64_t m, typename V::value temperature, typename V::value* p,
                       typename V::value* gate, typename V::value* complement) {
  using T = typename V::value;
  V largest = V::set(-std::numeric_limits<T>::infinity());
  T top = -std::numeric_limits<T>::infinity();
  int64_t k = 0;
  for (; k + V::width <= m; k += V::width) largest = V::max(largest, V::load(z + k));
  top = largest.largest();
  for (; k < m; ++k) top = std::max(top, z[k]);

  const V shift = V::set(top), inverse = V::set(T(1) / temperature);
  RunningSum<V> total;
  T rest = 0;
  for (k = 0; k + V::width <= m; k += V::width) {
    const V e = V::exp((V::load(z + k) - shift) * inverse);
    e.store(p + k);
    total.add(e);
  }
  if (k < m) {
    V::exp((V::load(z + k, m - k) - shift) * inverse).store(p + k, m - k);
    for (; k < m; ++k) rest += p[k];
  }

  const V scale = V::set(T(1) / (total.total() + rest)), one = V::set(1);
  RunningSum<V> before;
  for_each_vector<V>(m, [&](int64_t at, auto part) {
    const V x = part.load(p + at) * scale;
    part.store(x, p + at);
    const V inside = x.scan_from_left();
    part.store(V::min(one, before.plus(inside)), gate + at);
    before.add(inside.last());
  });

  const V zero = V::set(0);
  RunningSum<V> after;
  k = m / V::width * V::width;
  if (k < m) {
    const V inside = V::load(p + k, m - k).scan_from_right();  // lanes past the end are zero
    V::min(one, inside.shift_left(zero)).store(complement + k, m - k);
    after.add(inside.first());
  }
  for (k -= V::width; k >= 0; k -= V::width) {
    const V inside = V::load(p + k).scan_from_right();
    V::min(one, after.plus(inside.shift_left(zero))).store(complement + k);
    after.add(inside.first());
  }
}

// grad_z = p (s - <p, s>) / temperature with s_k = sum of grad_gate from k on; grad_gate is overwritten by s.
template <class V>
inline void cumsoftmax_backward(typename V::value* grad_gate, const typename V::value* p, int64_t m,
                                typename V::value temperature, typename V::value* grad_z) {
  using T = typename V::value;
  RunningSum<V> after, dot;
  int64_t k = m / V::width * V::width;
  if (k < m) {
    const V s = V::load(grad_gate + k, m - k).scan_from_right();
    s.store(grad_gate + k, m - k);
    dot.add(s * V::load(p + k, m - k));
    after.add(s.first());
  }
  for (k -= V::width; k >= 0; k -= V::width) {
    const V inside = V::load(grad_gate + k).scan_from_right();
    const V s = after.plus(inside);
    s.store(grad_gate + k);
    dot.add(s * V::load(p + k));
    after.add(inside.first());
  }
  const V mean = V::set(dot.total()), inverse = V::set(T(1) / temperature);
  for_each_vector<V>(m, [&](int64_t at, auto part) {
    part.store(part.load(p + at) * (part.load(grad_gate + at) - mean) * inverse, grad_z + at);
  });
}

// One value per chunk [gates] to one per dimension [d], in place where the chunk is 1.
template <class T>
inline const T* expand(const T* gate, int64_t gates, int64_t d, T* scratch) {
  if (gates == d) return gate;
  const int64_t chunk = d / gates;
  for (int64_t k = 0; k < gates; ++k) std::fill_n(scratch + k * chunk, chunk, gate[k]);
  return scratch;
}

// The adjoint of expand, in place: [d] to [gates].
template <class T>
inline void chunk_sum(T* x, int64_t gates, int64_t d) {
  if (gates == d) return;
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
