// Boundary partition, forward and backward: the dual gate of two bumps, whose logits are formed where they are used.
#include "../common/partition.h"

#include <type_traits>

#include "dual_gate.h"
#include "kernels.h"
#include "shares.h"

namespace pgm_fast::cpu {
namespace {

// 0, 1, 2, ...
template <class V>
V lane_numbers() {
  typename V::value numbers[V::width];
  for (int lane = 0; lane < V::width; ++lane) numbers[lane] = lane;
  return V::load(numbers);
}

// The exponents of a row's bump, one boundary per row.
template <class V>
class Bumps {
  using T = typename V::value;

 public:
  Bumps(const Matrix& boundaries, bool from_right, int64_t d, double width)
      : boundaries_(boundaries),
        from_right_(from_right),
        d_(d),
        in_double_(bump_curve(width, d)),
        curve_(V::set(static_cast<T>(in_double_))) {}

  int64_t width() const { return d_; }
  void start(int64_t row, T* scratch) {
    const auto found = bump<double>(*read(boundaries_, row, scratch), from_right_, static_cast<double>(d_), in_double_);
    from_peak_ = lanes_ - V::set(static_cast<T>(found.peak));
    tilt_ = V::set(static_cast<T>(found.tilt));
  }
  // How far the places from k on are from the bump's peak.
  PGM_FAST_INLINE V from_peak(int64_t k) const { return from_peak_ + V::set(static_cast<T>(k)); }
  template <class Part>
  PGM_FAST_INLINE V exponent(int64_t k, Part) const {
    return bump_exponent(from_peak(k), curve_, tilt_);
  }

 private:
  Matrix boundaries_;
  bool from_right_;
  int64_t d_;
  double in_double_;
  V curve_, tilt_ = V::set(0), lanes_ = lane_numbers<V>(), from_peak_ = V::set(0);
};

template <class V>
DualGate<V, Bumps<V>> gates_of(const Matrix& b_uni, const Matrix& b_paired, int64_t begin, int64_t end, int64_t d,
                               double width) {
  return {{b_uni, false, d, width}, {b_paired, true, d, width}, begin, end};
}

template <class V, class Share>
void split_rows(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor, Matrix uni,
                Matrix paired, Matrix share, int threads) {
  using T = typename V::value;
  const int64_t d = h.width;
  const bool bypass = bypasses_cache(rows, {h, uni, paired});
  const V least = V::set(static_cast<T>(floor)), above = V::set(static_cast<T>(1 - floor));
  parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
    auto gate = gates_of<V>(b_uni, b_paired, begin, end, d, width);
    Scratch<T> scratch(3, d);
    for (int64_t row = begin; row < end; ++row, gate.softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      T* u = target(uni, row, scratch[1]);
      T* p = target(paired, row, scratch[2]);
      with_stores(bypass, [&](auto store) {
        Share taken;
        gate.from_right(
            [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
              prefetch(x + d + k);
              const V value = part.load(x + k);
              store(part, open_at_least(at.e, least, above) * value, u + k);
              store(part, open_at_least(at.r, least, above) * value, p + k);
              at.add_to(taken);
            },
            taken);
        taken.store(share, row, d);
      });
      finish(uni, row, u);
      finish(paired, row, p);
    }
    stream_fence();
  });
}

// The derivative of a bump's gate, from the right: sums of the logits' gradients and of those times where they are.
template <class V>
struct BoundaryGradient {
  using T = typename V::value;
  SuffixSum<V> suffix;
  RunningSum<V> sum, moment, place;

  void step(V grad_gate, V e, V from_peak) {
    const V weighted = suffix.step(grad_gate) * e;
    sum.add(weighted);
    moment.add_product(weighted, from_peak);
    place.add_product(e, from_peak);
  }
  void settle() {
    suffix.settle();
    sum.settle();
    moment.settle();
    place.settle();
  }
  // Of the row whose exponentials have this sum; in double, for the terms nearly cancel.
  double of_center(double all) const { return (moment.total() - sum.total() / all * place.total()) / all; }
};

template <class T>
void store_number(double x, const Matrix& to, int64_t row, T* scratch) {
  T* at = target(to, row, scratch);
  *at = static_cast<T>(x);
  finish(to, row, at);
}

template <class V, bool kShare, bool kDetached>
void gradient_rows(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix b_uni,
                   Matrix b_paired, double width, double floor, Matrix grad_h, Matrix grad_b_uni, Matrix grad_b_paired,
                   int threads) {
  using T = typename V::value;
  using Share = std::conditional_t<kShare, GradShare<V, 4, 3>, NoGradShare<V, 4, 3>>;
  const int64_t d = h.width;
  const bool bypass = bypasses_cache(rows, {grad_uni, grad_paired, h, grad_h});
  const V least = V::set(static_cast<T>(floor)), above = V::set(static_cast<T>(1 - floor));
  const double factor = bump_gradient_factor(bump_curve(width, d), d);
  parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
    auto gate = gates_of<V>(b_uni, b_paired, begin, end, d, width);
    Bumps<V> uni(b_uni, false, d, width), paired(b_paired, true, d, width);
    Scratch<T> scratch(5, d);
    for (int64_t row = begin; row < end; ++row, gate.softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      const T* du = read(grad_uni, row, scratch[1]);
      const T* dp = read(grad_paired, row, scratch[2]);
      T* dh = target(grad_h, row, scratch[3]);
      uni.start(row, scratch[4]);
      paired.start(row, scratch[4]);
      const Share of_share(grad_share, row, d);
      BoundaryGradient<V> by_uni, by_paired;
      with_stores(bypass, [&](auto store) {
        gate.from_right(
            [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
              for (const T* row_of : {x, du, dp}) prefetch(row_of + d + k);
              const V u = part.load(du + k), p = part.load(dp + k);
              store(part, open_at_least(at.e, least, above) * u + open_at_least(at.r, least, above) * p, dh + k);
              V of_uni = V::set(0), of_paired = V::set(0);
              if constexpr (kShare) {
                V by[3] = {of_uni, of_uni, of_uni};
                of_share.add_to(by, part);
                of_uni = dual_grad_uni_gate(at.r, at.nr, by[0], by[1], by[2]);
                of_paired = dual_grad_paired_gate(at.e, at.ne, by[0], by[1], by[2]);
              }
              if constexpr (!kDetached) {
                const V value = above * part.load(x + k);
                of_uni = of_uni - value * u;
                of_paired = of_paired + value * p;
              }
              by_uni.step(of_uni, part.load(gate.softmax[0].e + k), uni.from_peak(k));
              by_paired.step(of_paired, part.load(gate.softmax[1].e + k), paired.from_peak(k));
            },
            by_uni, by_paired);
      });
      finish(grad_h, row, dh);
      store_number(factor * by_uni.of_center(gate.softmax[0].prefix[d - 1]), grad_b_uni, row, scratch[4]);
      store_number(-factor * by_paired.of_center(gate.softmax[1].prefix[d - 1]), grad_b_paired, row, scratch[4]);
    }
    stream_fence();
  });
}

}  // namespace

void partition_boundary(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor, bool,
                        Matrix uni, Matrix paired, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, NoShare<V, 4>>(rows, h, b_uni, b_paired, width, floor, uni, paired, {}, threads);
  });
}

void partition_boundary_with_share(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor,
                                   bool, Matrix uni, Matrix paired, Matrix share, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, RowShare<V, 4>>(rows, h, b_uni, b_paired, width, floor, uni, paired, share, threads);
  });
}

void partition_boundary_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h,
                                 Matrix b_uni, Matrix b_paired, double width, double floor, bool detach_gates,
                                 Matrix grad_h, Matrix grad_b_uni, Matrix grad_b_paired, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    const bool share = grad_share.data != nullptr;
    const auto run = detach_gates ? (share ? gradient_rows<V, true, true> : gradient_rows<V, false, true>)
                                  : (share ? gradient_rows<V, true, false> : gradient_rows<V, false, false>);
    run(rows, grad_uni, grad_paired, grad_share, h, b_uni, b_paired, width, floor, grad_h, grad_b_uni, grad_b_paired,
        threads);
  });
}

}  // namespace pgm_fast::cpu
