// The cumulative softmax of one row and its derivative, as scans that the kernels run in two passes: from the left,
// which forms the exponentials and their prefix sums, and from the right, in which complement gates, outputs and
// gradients are formed together. What passes between them lives in scratch rows that stay in the first-level cache. The
// pass over one row from the right and that over the next row from the left run side by side.
#pragma once

#include <array>
#include <limits>
#include <utility>

#include "../common/partition.h"
#include "matrix.h"
#include "stores.h"

namespace pgm_fast::cpu {

// A running sum whose rounding errors do not grow with the row: plain over kBlock vectors, whose sum is small beside
// that of the row, and from block to block with the rounding error kept (Knuth's two-sum).
template <class V>
struct RunningSum {
  static constexpr int64_t kBlock = 16;
  V high = V::set(0), low = V::set(0);

  void add(V x) { low = low + x; }
  void add_product(V x, V y) { low = V::fma(x, y, low); }
  void settle() {
    const V sum = high + low;
    const V added = sum - high;
    low = (high - (sum - added)) + (low - added);
    high = sum;
  }
  typename V::value total() const { return (high + low).sum(); }
};

// Sums up to and with each element, for vectors that come from the left, and from each element on, for vectors from the
// right.
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
PGM_FAST_INLINE inline void from_left(int64_t size, Body&& body, Sums&... sums) {
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
PGM_FAST_INLINE inline void from_right(int64_t size, Body&& body, Sums&... sums) {
  constexpr int64_t block = RunningSum<V>::kBlock * V::width;
  const int64_t whole = size / V::width * V::width;
  if (whole < size) body(whole, Partial<V>{size - whole});
  for (int64_t end = whole; end > 0; end -= block) {
    const int64_t begin = std::max<int64_t>(0, end - block);
    for (int64_t k = end - V::width; k >= begin; k -= V::width) body(k, Full<V>{});
    (sums.settle(), ...);
  }
}

// Calls left(k, part) from the left and right(k, part) from the right, in turn, so that one's latencies are hidden
// behind the other's arithmetic; `sums` belong to either.
template <class V, class Left, class Right, class... Sums>
PGM_FAST_INLINE inline void from_both(int64_t size, Left&& left, Right&& right, Sums&... sums) {
  constexpr int64_t block = RunningSum<V>::kBlock * V::width;
  const int64_t whole = size / V::width * V::width;
  if (whole < size) right(whole, Partial<V>{size - whole});
  for (int64_t begin = 0; begin < whole; begin += block) {
    const int64_t end = std::min(whole, begin + block);
    for (int64_t k = begin; k < end; k += V::width) {
      left(k, Full<V>{});
      right(whole - V::width - k, Full<V>{});
    }
    (sums.settle(), ...);
  }
  if (whole < size) left(whole, Partial<V>{size - whole});
}

template <class V>
inline typename V::value largest(const typename V::value* x, int64_t size) {
  using T = typename V::value;
  // as many at a time as hide the latency of one
  constexpr int64_t kAtATime = 4;
  V tops[kAtATime];
  for (V& top : tops) top = V::set(-std::numeric_limits<T>::infinity());
  int64_t k = 0;
  for (; k + kAtATime * V::width <= size; k += kAtATime * V::width) {
    for (int64_t j = 0; j < kAtATime; ++j) tops[j] = V::max(tops[j], V::load(x + k + j * V::width));
  }
  for (; k + V::width <= size; k += V::width) tops[0] = V::max(tops[0], V::load(x + k));
  if (k < size) tops[1] = V::max(tops[1], V::load(x + k, size - k, tops[1]));
  return V::max(V::max(tops[0], tops[1]), V::max(tops[2], tops[3])).largest();
}

// Where the exponents of a softmax come from, in powers of two from a row's largest: logits in memory, over a
// temperature.
template <class V>
class Logits {
  using T = typename V::value;

 public:
  // kept finite: the largest logit's exponent is 0 times the slope
  Logits(const Matrix& z, double temperature)
      : z_(z),
        slope_(V::set(static_cast<T>(std::min(kLog2OfE / static_cast<double>(static_cast<T>(temperature)),
                                              static_cast<double>(std::numeric_limits<T>::max()))))) {}

  int64_t width() const { return z_.width; }
  void start(int64_t row, T* scratch) {
    row_ = read(z_, row, scratch);
    largest_ = V::set(largest<V>(row_, width()));
  }
  template <class Part>
  PGM_FAST_INLINE V exponent(int64_t k, Part part) const {
    prefetch(row_ + width() + k);
    return (part.load(row_ + k) - largest_) * slope_;
  }

 private:
  Matrix z_;
  V slope_, largest_ = V::set(0);
  const T* row_ = nullptr;
};

// p = softmax = e * scale, and its inclusive prefix sum = prefix * scale.
template <class V>
struct Exponentials {
  using T = typename V::value;
  T *e, *prefix;  // [m], and a zero behind the last e
  V scale = V::set(0);
  PrefixSum<V> sum;

  template <class Part>
  void step(V exponent, int64_t k, Part part) {
    const V x = V::exp2(exponent);
    part.store(x, e + k);
    part.store(sum.step(x), prefix + k);
  }
  void finish(int64_t m) {
    e[m] = 0;
    scale = V::set(T(1) / prefix[m - 1]);
  }
  template <class Part>
  V gate(int64_t k, Part part) const {
    return V::min(V::set(1), part.load(prefix + k) * scale);
  }
};

// 1 - gate: the sum of what follows. It has its own scan, because 1 - gate has no correct digit where the gate is
// near 1.
template <class V>
struct Complement : SuffixSum<V> {
  template <class Part>
  V step(const Exponentials<V>& softmax, int64_t k, Part part) {
    // one element on, so that what a gate's complement leaves out is not in the sum
    return V::min(V::set(1), SuffixSum<V>::step(part.load(softmax.e + k + 1)) * softmax.scale);
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
    const T inverse = std::min(T(1) / temperature, std::numeric_limits<T>::max());
    const V mean = V::set(dot.total()) * softmax.scale, factor = softmax.scale * V::set(inverse);
    for_each_vector<V>(m, [&](int64_t k, auto part) {
      store(part, part.load(softmax.e + k) * factor * (part.load(s + k) - mean), grad_z + k);
    });
  }
};

// The softmaxes of rows [begin, end), of exponents from kGates sources alike, one row at a time.
template <class V, int kGates, class Exponents = Logits<V>>
class SoftmaxRows {
  using T = typename V::value;

 public:
  SoftmaxRows(const std::array<Exponents, kGates>& exponents, int64_t begin, int64_t end)
      : exponents_(exponents), next_row_(begin), end_(end), scratch_(5 * kGates, exponents[0].width() + 1) {
    for (int g = 0; g < kGates; ++g) {
      now_[g].e = scratch_[5 * g], now_[g].prefix = scratch_[5 * g + 1];
      next_[g].e = scratch_[5 * g + 2], next_[g].prefix = scratch_[5 * g + 3];
    }
    advance();
  }

  // Of the current row.
  const Exponentials<V>& operator[](int gate) const { return now_[gate]; }

  // Calls body(k, part) for the current row from the right, and computes the next row beside it.
  template <class Body, class... Sums>
  PGM_FAST_INLINE void from_right(Body&& body, Sums&... sums) {
    if (start()) {
      from_both<V>(width(), [&](int64_t k, auto part) PGM_FAST_INLINE { step(k, part); }, body, *this, sums...);
      finish();
    } else {
      cpu::from_right<V>(width(), body, sums...);
    }
  }

  // Moves on to the next row.
  void advance() {
    if (!computed_ && start()) {
      from_left<V>(width(), [&](int64_t k, auto part) PGM_FAST_INLINE { step(k, part); }, *this);
      finish();
    }
    computed_ = false;
    std::swap(now_, next_);
    ++next_row_;
  }

  // Of the sums of the row that is being computed.
  void settle() {
    for (auto& softmax : next_) softmax.sum.settle();
  }

 private:
  int64_t width() const { return exponents_[0].width(); }

  bool start() {
    if (next_row_ == end_) return false;
    for (int g = 0; g < kGates; ++g) {
      exponents_[g].start(next_row_, scratch_[5 * g + 4]);
      next_[g].sum = {};
    }
    return true;
  }
  template <class Part>
  PGM_FAST_INLINE void step(int64_t k, Part part) {
    for (int g = 0; g < kGates; ++g) next_[g].step(exponents_[g].exponent(k, part), k, part);
  }
  void finish() {
    for (auto& softmax : next_) softmax.finish(width());
    computed_ = true;
  }

  std::array<Exponents, kGates> exponents_;
  int64_t next_row_, end_;
  Scratch<T> scratch_;
  std::array<Exponentials<V>, kGates> now_, next_;
  bool computed_ = false;
};

// The gates of a row and their complements, for gates that stand for several dimensions.
template <class V>
inline void gate_row(const Exponentials<V>& softmax, int64_t m, typename V::value* gate) {
  for_each_vector<V>(m, [&](int64_t k, auto part) { part.store(softmax.gate(k, part), gate + k); });
}
template <class V>
inline void complement_row(const Exponentials<V>& softmax, int64_t m, typename V::value* complement) {
  Complement<V> scan;
  from_right<V>(m, [&](int64_t k, auto part) { part.store(scan.step(softmax, k, part), complement + k); }, scan);
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
