// Rows of standard normals from counters: Philox words, then Box-Muller. The definition is in pgm_fast/ops/philox.py.
#pragma once

#include "../common/philox.h"
#include "simd.h"

namespace pgm_fast::cpu {

// One pair of normals from a word for the radius and one for the angle, without vectors.
template <class T>
inline void box_muller(Word radial, Word angular, Lane<T>& first, Lane<T>& second) {
  constexpr double kHalfPi = 1.57079632679489661923;
  const double radius = std::sqrt(-2.0 * std::log(((radial.v >> 9) + 0.5) * 0x1p-23));
  const double place = ((angular.v >> 7) & 0x7fffffu) * 0x1p-23 - 0.5;
  const double angle = kHalfPi * ((angular.v >> 30) + place);
  first.v = radius * std::cos(angle);
  second.v = radius * std::sin(angle);
}

template <class V>
struct WordsOf {
  using type = Word;
  static Word count_from(uint32_t first) { return {first}; }
};

#if defined(__AVX512F__) || defined(__AVX2__)

template <>
struct WordsOf<Simd> {
  using type = Words;
  static Words count_from(uint32_t first) { return Words::count_from(first); }
};

// ln x for x normal and in (0, 1]: x = m 2^e with m in [sqrt 1/2, sqrt 2), ln m by the degree-8 polynomial of Cephes
// logf (Moshier).
inline Simd log_of_uniform(Simd x) {
  const Words bits = Words::of(x);
  const Words e = (bits - Words::set(0x3f3504f3u)).arithmetic_shift_right<23>();
  const Simd m = (bits - e.shift_left<23>()).as_float() - Simd::set(1.0f), n = e.to_float(), square = m * m;
  Simd y = Simd::set(7.0376836292e-2f);
  for (const float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                        2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}) {
    y = Simd::fma(y, m, Simd::set(c));
  }
  y = y * m * square;
  y = Simd::fma(n, Simd::set(-2.12194440e-4f), y);
  y = Simd::fma(square, Simd::set(-0.5f), y);
  return Simd::fma(n, Simd::set(0.693359375f), m + y);
}

// The angle is a quarter turn times (two highest bits + place), place in [-1/2, 1/2): no reduction, and polynomials of
// Cephes sinf and cosf on [-pi/4, pi/4].
inline void box_muller(Words radial, Words angular, Simd& first, Simd& second) {
  const Simd uniform = Simd::fma(radial.shift_right<9>().to_float(), Simd::set(0x1p-23f), Simd::set(0x1p-24f));
  const Simd radius = Simd::sqrt(log_of_uniform(uniform) * Simd::set(-2.0f));
  const Simd place =
      Simd::fma((angular.shift_right<7>() & Words::set(0x7fffffu)).to_float(), Simd::set(0x1p-23f), Simd::set(-0.5f));
  const Simd x = place * Simd::set(1.57079632679489661923f), square = x * x;
  Simd sine = Simd::fma(square, Simd::set(-1.9515295891e-4f), Simd::set(8.3321608736e-3f));
  sine = Simd::fma(sine, square, Simd::set(-1.6666654611e-1f));
  sine = Simd::fma(sine * square, x, x);
  Simd cosine = Simd::fma(square, Simd::set(2.443315711809948e-5f), Simd::set(-1.388731625493765e-3f));
  cosine = Simd::fma(cosine, square, Simd::set(4.166664568298827e-2f));
  cosine = Simd::fma(cosine, square, Simd::set(-0.5f));
  cosine = Simd::fma(cosine, square, Simd::set(1.0f));
  // in odd quarters sine and cosine change places; the sine is negative in the upper two, the cosine in the middle two
  const Words sign = Words::set(0x80000000u);
  const Words odd = angular.shift_left<1>();
  const Words cosine_sign = (angular ^ odd) & sign, sine_sign = angular & sign;
  const Simd c = odd.pick_by_sign(cosine, sine), s = odd.pick_by_sign(sine, cosine);
  first = radius * (Words::of(c) ^ cosine_sign).as_float();
  second = radius * (Words::of(s) ^ sine_sign).as_float();
}

#endif

// Normals of one row of a matrix, to[d rounded up to whole groups of 64].
template <class V>
inline void noise_row(uint64_t seed, int64_t row, int64_t d, typename V::value* to) {
  using W = typename WordsOf<V>::type;
  const W row_low = W::set(static_cast<uint32_t>(row)),
          row_high = W::set(static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32));
  for (int64_t column = 0; column < d; column += kNoiseGroup, to += kNoiseGroup) {
    for (int64_t lane = 0; lane < kNoiseLanes; lane += V::width) {
      W block[4] = {WordsOf<V>::count_from(static_cast<uint32_t>(column / 4 + lane)), row_low, row_high, W::set(0)};
      philox(block, seed);
      V normal[4];
      box_muller(block[0], block[1], normal[0], normal[1]);
      box_muller(block[2], block[3], normal[2], normal[3]);
      for (int word = 0; word < 4; ++word) normal[word].store(to + word * kNoiseLanes + lane);
    }
  }
}

}  // namespace pgm_fast::cpu
