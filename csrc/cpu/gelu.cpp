// The exact GELU of hidden features and its derivative, with what dropout keeps of them: hidden = keep * x * Phi(x).
// Operands in float or double. (torch's own goes through oneDNN, which sets up a primitive in every call: half of the
// time for a block of a small batch.)
#include <cmath>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

// Phi, the share of the normal distribution below x, and its density there.
template <class V>
struct Normal {
  V below, density;
};

template <class T>
Normal<Lane<T>> normal(Lane<T> x) {
  constexpr double kRootHalf = 0.70710678118654752, kDensityAtZero = 0.39894228040143268;
  return {{0.5 * std::erfc(-x.v * kRootHalf)}, {kDensityAtZero * std::exp(-0.5 * x.v * x.v)}};
}

#if defined(__AVX512F__) || defined(__AVX2__)
// 1 - Phi(|x|) = e^(-x^2 / 2) t p(t) with t = 1 / (1 + 0.35 |x|): p is fitted to relative error on |x| <= 14 (3e-8
// before rounding), past which floats are 0. Taken from 1 only where that loses nothing, so that small values of Phi
// keep their digits.
Normal<Simd> normal(Simd x) {
  const Simd zero = Simd::set(0), one = Simd::set(1);
  const Simd size = Simd::max(x, zero - x), bell = Simd::exp(x * x * Simd::set(-0.5f));
  const Simd t = one / Simd::fma(size, Simd::set(0.35f), one);
  Simd p = Simd::set(-0.0291459233f);
  for (const float coefficient : {0.143971664f, -0.255714184f, 0.15917408f, -0.0231097808f, 0.105507982f, 0.119832873f,
                                  0.139861869f, 0.139621404f}) {
    p = Simd::fma(p, t, Simd::set(coefficient));
  }
  const Simd above_size = bell * t * p;
  return {x.pick_below_zero(above_size, one - above_size), bell * Simd::set(0.398942280f)};
}
#endif

template <class T>
T* numbers(const Matrix& m) {
  return static_cast<T*>(m.data);
}

}  // namespace

void add_bias(int64_t rows, Matrix x, Matrix bias) {
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* b = numbers<T>(bias);
    for (int64_t row = 0; row < rows; ++row) {
      T* to = numbers<T>(x) + row * x.width;
      for_each_vector<V>(x.width,
                         [&](int64_t k, auto part) { part.store(part.load(to + k) + part.load(b + k), to + k); });
    }
  });
}

void gelu(int64_t rows, Matrix x, Matrix bias, Matrix keep, Matrix hidden) {
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T *b = numbers<T>(bias), *kept = numbers<T>(keep);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t first = row * x.width;
      T *from = numbers<T>(x) + first, *to = numbers<T>(hidden) + first;
      for_each_vector<V>(x.width, [&](int64_t k, auto part) {
        const V value = part.load(from + k) + part.load(b + k), y = value * normal(value).below;
        part.store(value, from + k);
        part.store(kept == nullptr ? y : y * part.load(kept + first + k), to + k);
      });
    }
  });
}

void gelu_backward(int64_t rows, Matrix grad, Matrix x, Matrix keep, Matrix grad_x, Matrix hidden) {
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T *by = numbers<T>(grad), *from = numbers<T>(x), *kept = numbers<T>(keep);
    T *to_x = numbers<T>(grad_x), *to_hidden = numbers<T>(hidden);
    for_each_vector<V>(rows * x.width, [&](int64_t k, auto part) {
      const V value = part.load(from + k), factor = kept == nullptr ? V::set(1) : part.load(kept + k);
      const Normal<V> at = normal(value);
      const V g = part.load(by + k) * factor;
      part.store(g * V::fma(value, at.density, at.below), to_x + k);
      part.store(value * at.below * factor, to_hidden + k);
    });
  });
}

}  // namespace pgm_fast::cpu
