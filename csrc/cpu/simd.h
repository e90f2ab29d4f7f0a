// Vectors of float for the instruction set that this file is compiled for, and a one-lane stand-in for float and
// double.
//
// Beyond arithmetic the kernels need three things: scans inside a vector, loads and stores of the first n lanes, and
// stores that bypass the cache. The instruction set is a compile-time choice; bindings.cpp refuses to load on a CPU
// that lacks it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// For functions and lambdas that carry sums from vector to vector, which stay in registers only if all of it is one
// function. Compilers stop inlining by themselves where a file grows large.
#if defined(__GNUC__)
#define PGM_FAST_INLINE __attribute__((always_inline))
#else
#define PGM_FAST_INLINE
#endif

namespace pgm_fast::cpu {

// One lane: T in memory, double in between, so that a scan of thousands of floats loses nothing without vectors either.
template <class T>
struct Lane {
  using value = T;
  static constexpr int width = 1;
  double v;

  static Lane set(double x) { return {x}; }
  static Lane load(const T* from) { return {*from}; }
  static Lane load(const T* from, int64_t) { return {*from}; }
  static Lane load(const T* from, int64_t, Lane) { return {*from}; }
  void store(T* to) const { *to = static_cast<T>(v); }
  void store(T* to, int64_t) const { store(to); }
  void stream(T* to) const { store(to); }
  friend Lane operator+(Lane a, Lane b) { return {a.v + b.v}; }
  friend Lane operator-(Lane a, Lane b) { return {a.v - b.v}; }
  friend Lane operator*(Lane a, Lane b) { return {a.v * b.v}; }
  friend Lane operator/(Lane a, Lane b) { return {a.v / b.v}; }
  friend Lane multiply_add(Lane a, Lane b, Lane c) { return {a.v * b.v + c.v}; }
  friend Lane square_root(Lane a) { return {std::sqrt(a.v)}; }
  friend Lane larger(Lane a, Lane b) { return {a.v > b.v || a.v != a.v ? a.v : b.v}; }  // NaN in either stays
  // as the vector instructions: the second operand where one is NaN
  static Lane max(Lane a, Lane b) { return {a.v > b.v ? a.v : b.v}; }
  static Lane min(Lane a, Lane b) { return {a.v < b.v ? a.v : b.v}; }
  static Lane fma(Lane a, Lane b, Lane c) { return {a.v * b.v + c.v}; }
  Lane pick_below_zero(Lane a, Lane b) const { return v < 0 ? a : b; }
  Lane clear_from(int64_t) const { return *this; }
  static Lane exp(Lane a) { return {std::exp(a.v)}; }
  static Lane exp2(Lane a) { return {std::exp2(a.v)}; }
  Lane scan_from_left() const { return *this; }
  Lane scan_from_right() const { return *this; }
  Lane first() const { return *this; }
  Lane last() const { return *this; }
  // lanes 1.. and then the first lane of next
  Lane shift_left(Lane next) const { return next; }
  T sum() const { return static_cast<T>(v); }
  T largest() const { return static_cast<T>(v); }
};

// Asks for a cache line that will be read soon. The address need not be valid. A call that is not inlined is dropped:
// it has no effect that a compiler knows of.
PGM_FAST_INLINE inline void prefetch([[maybe_unused]] const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#endif
}

inline void stream_fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

#if defined(__AVX512F__)

struct Simd {
  using value = float;
  static constexpr int width = 16;
  __m512 v;

  static Simd set(float x) { return {_mm512_set1_ps(x)}; }
  static Simd load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Simd load(const float* from, int64_t n) { return {_mm512_maskz_loadu_ps(mask(n), from)}; }
  // from lane n on those of `rest`
  static Simd load(const float* from, int64_t n, Simd rest) { return {_mm512_mask_loadu_ps(rest.v, mask(n), from)}; }
  void store(float* to) const { _mm512_storeu_ps(to, v); }
  void store(float* to, int64_t n) const { _mm512_mask_storeu_ps(to, mask(n), v); }
  void stream(float* to) const { _mm512_stream_ps(to, v); }
  friend Simd operator+(Simd a, Simd b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Simd operator-(Simd a, Simd b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Simd operator*(Simd a, Simd b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Simd operator/(Simd a, Simd b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Simd multiply_add(Simd a, Simd b, Simd c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Simd square_root(Simd a) { return {_mm512_sqrt_ps(a.v)}; }
  friend Simd larger(Simd a, Simd b) {
    // the instruction returns its second operand where one is NaN
    return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
  }
  static Simd max(Simd a, Simd b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Simd min(Simd a, Simd b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Simd fma(Simd a, Simd b, Simd c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // a * 2^n for integral n
  static Simd scale(Simd a, Simd n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  // a - floor(a), 0 for infinities, and b * 2^floor(a)
  static Simd fraction(Simd a) { return {_mm512_reduce_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
  static Simd scale_by_floor(Simd b, Simd a) { return {_mm512_scalef_ps(b.v, a.v)}; }
  Simd scan_from_left() const {
    const __m512i zero = _mm512_setzero_si512();
    __m512 x = v;
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), zero, 15)));
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), zero, 14)));
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), zero, 12)));
    return {_mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(x), zero, 8)))};
  }
  Simd scan_from_right() const {
    const __m512i zero = _mm512_setzero_si512();
    __m512 x = v;
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(zero, _mm512_castps_si512(x), 1)));
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(zero, _mm512_castps_si512(x), 2)));
    x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(zero, _mm512_castps_si512(x), 4)));
    return {_mm512_add_ps(x, _mm512_castsi512_ps(_mm512_alignr_epi32(zero, _mm512_castps_si512(x), 8)))};
  }
  Simd first() const { return {_mm512_broadcastss_ps(_mm512_castps512_ps128(v))}; }
  Simd last() const { return {_mm512_permutexvar_ps(_mm512_set1_epi32(15), v)}; }
  Simd shift_left(Simd next) const {
    return {_mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(next.v), _mm512_castps_si512(v), 1))};
  }
  static Simd sqrt(Simd a) { return {_mm512_sqrt_ps(a.v)}; }
  // a in lanes below zero, b elsewhere
  Simd pick_below_zero(Simd a, Simd b) const {
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(v)), b.v, a.v)};
  }
  // 0 from lane n on
  Simd clear_from(int64_t n) const { return {_mm512_maskz_mov_ps(mask(n), v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  float largest() const { return _mm512_reduce_max_ps(v); }
  static Simd exp(Simd a);
  static Simd exp2(Simd a);

 private:
  static __mmask16 mask(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// 32-bit words, one per lane of Simd.
struct Words {
  __m512i v;

  static Words set(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static Words count_from(uint32_t first) {
    return {_mm512_add_epi32(set(first).v, _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
  }
  static Words of(Simd x) { return {_mm512_castps_si512(x.v)}; }
  Simd as_float() const { return {_mm512_castsi512_ps(v)}; }
  Simd to_float() const { return {_mm512_cvtepi32_ps(v)}; }  // of a signed number
  friend Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
  friend Words operator&(Words a, Words b) { return {_mm512_and_si512(a.v, b.v)}; }
  friend Words operator-(Words a, Words b) { return {_mm512_sub_epi32(a.v, b.v)}; }
  template <int n>
  Words shift_left() const {
    return {_mm512_slli_epi32(v, n)};
  }
  template <int n>
  Words shift_right() const {
    return {_mm512_srli_epi32(v, n)};
  }
  template <int n>
  Words arithmetic_shift_right() const {
    return {_mm512_srai_epi32(v, n)};
  }
  // b in lanes whose highest bit is set, a elsewhere
  Simd pick_by_sign(Simd a, Simd b) const { return {_mm512_mask_blend_ps(_mm512_movepi32_mask(v), a.v, b.v)}; }
  static void multiply(Words x, uint32_t m, Words& high, Words& low) {
    const __m512i by = _mm512_set1_epi32(static_cast<int>(m));
    const __m512i even = _mm512_mul_epu32(x.v, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(x.v, 32), by);
    high.v = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low.v = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
};

#elif defined(__AVX2__)

struct Simd {
  using value = float;
  static constexpr int width = 8;
  __m256 v;

  static Simd set(float x) { return {_mm256_set1_ps(x)}; }
  static Simd load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Simd load(const float* from, int64_t n) { return {_mm256_maskload_ps(from, mask(n))}; }
  // from lane n on those of `rest`
  static Simd load(const float* from, int64_t n, Simd rest) {
    return {_mm256_blendv_ps(rest.v, load(from, n).v, _mm256_castsi256_ps(mask(n)))};
  }
  void store(float* to) const { _mm256_storeu_ps(to, v); }
  void store(float* to, int64_t n) const { _mm256_maskstore_ps(to, mask(n), v); }
  void stream(float* to) const { _mm256_stream_ps(to, v); }
  friend Simd operator+(Simd a, Simd b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Simd operator-(Simd a, Simd b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Simd operator*(Simd a, Simd b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Simd operator/(Simd a, Simd b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend Simd multiply_add(Simd a, Simd b, Simd c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend Simd square_root(Simd a) { return {_mm256_sqrt_ps(a.v)}; }
  friend Simd larger(Simd a, Simd b) {
    // the instruction returns its second operand where one is NaN
    return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
  }
  static Simd max(Simd a, Simd b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Simd min(Simd a, Simd b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Simd fma(Simd a, Simd b, Simd c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // a * 2^n for integral n, in two steps: 2^n itself may be subnormal where the product is not
  static Simd scale(Simd a, Simd n) {
    const __m256i exponent = _mm256_cvtps_epi32(n.v);
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    return a * power_of_two(half) * power_of_two(_mm256_sub_epi32(exponent, half));
  }
  Simd scan_from_left() const {
    __m256 x = v;
    x = _mm256_add_ps(x, _mm256_castsi256_ps(_mm256_slli_si256(_mm256_castps_si256(x), 4)));
    x = _mm256_add_ps(x, _mm256_castsi256_ps(_mm256_slli_si256(_mm256_castps_si256(x), 8)));
    const __m256 low = _mm256_permute2f128_ps(x, x, 0x08);  // low half moved up, zero below
    return {_mm256_add_ps(x, _mm256_shuffle_ps(low, low, 0xff))};
  }
  Simd scan_from_right() const {
    __m256 x = v;
    x = _mm256_add_ps(x, _mm256_castsi256_ps(_mm256_srli_si256(_mm256_castps_si256(x), 4)));
    x = _mm256_add_ps(x, _mm256_castsi256_ps(_mm256_srli_si256(_mm256_castps_si256(x), 8)));
    const __m256 high = _mm256_permute2f128_ps(x, x, 0x81);  // high half moved down, zero above
    return {_mm256_add_ps(x, _mm256_shuffle_ps(high, high, 0x00))};
  }
  Simd first() const { return {_mm256_broadcastss_ps(_mm256_castps256_ps128(v))}; }
  Simd last() const { return {_mm256_permutevar8x32_ps(v, _mm256_set1_epi32(7))}; }
  Simd shift_left(Simd next) const {
    const __m256i order = _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0);
    return {_mm256_permutevar8x32_ps(_mm256_blend_ps(v, next.v, 1), order)};
  }
  static Simd sqrt(Simd a) { return {_mm256_sqrt_ps(a.v)}; }
  // a in lanes below zero, b elsewhere
  Simd pick_below_zero(Simd a, Simd b) const { return {_mm256_blendv_ps(b.v, a.v, v)}; }
  // 0 from lane n on
  Simd clear_from(int64_t n) const { return {_mm256_and_ps(v, _mm256_castsi256_ps(mask(n)))}; }
  float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float largest() const {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  // a - floor(a), and b * 2^floor(a); a within the exponents of float, and all below -150 as -150
  static Simd fraction(Simd a) {
    const Simd x = max(set(-150.0f), a);
    return {_mm256_sub_ps(x.v, _mm256_floor_ps(x.v))};
  }
  static Simd scale_by_floor(Simd b, Simd a) { return scale(b, {_mm256_floor_ps(max(set(-150.0f), a).v)}); }
  static Simd exp(Simd a);
  static Simd exp2(Simd a);

 private:
  static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Simd power_of_two(__m256i n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
  }
};

// 32-bit words, one per lane of Simd.
struct Words {
  __m256i v;

  static Words set(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  static Words count_from(uint32_t first) {
    return {_mm256_add_epi32(set(first).v, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
  }
  static Words of(Simd x) { return {_mm256_castps_si256(x.v)}; }
  Simd as_float() const { return {_mm256_castsi256_ps(v)}; }
  Simd to_float() const { return {_mm256_cvtepi32_ps(v)}; }  // of a signed number
  friend Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
  friend Words operator&(Words a, Words b) { return {_mm256_and_si256(a.v, b.v)}; }
  friend Words operator-(Words a, Words b) { return {_mm256_sub_epi32(a.v, b.v)}; }
  template <int n>
  Words shift_left() const {
    return {_mm256_slli_epi32(v, n)};
  }
  template <int n>
  Words shift_right() const {
    return {_mm256_srli_epi32(v, n)};
  }
  template <int n>
  Words arithmetic_shift_right() const {
    return {_mm256_srai_epi32(v, n)};
  }
  // b in lanes whose highest bit is set, a elsewhere
  Simd pick_by_sign(Simd a, Simd b) const { return {_mm256_blendv_ps(a.v, b.v, _mm256_castsi256_ps(v))}; }
  static void multiply(Words x, uint32_t m, Words& high, Words& low) {
    const __m256i by = _mm256_set1_epi32(static_cast<int>(m));
    const __m256i even = _mm256_mul_epu32(x.v, by), odd = _mm256_mul_epu32(_mm256_srli_epi64(x.v, 32), by);
    high.v = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low.v = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  }
};

#else

using Simd = Lane<float>;

#endif

#if defined(__AVX512F__) || defined(__AVX2__)
// e^a: a = n ln 2 + r with ln 2 in two parts, e^r by a polynomial fitted to
// relative error on |r| <= ln 2 / 2 (3e-9 before rounding); within 0.63 ulp. e^-104 rounds to 0, and what
// is past e^89 to infinity.
inline Simd Simd::exp(Simd a) {
  const Simd x = min(set(104.0f), max(set(-104.0f), a));  // this order keeps a NaN
  const Simd to_integer = set(12582912.0f);               // 1.5 * 2^23: adding it leaves no bit for a fraction
  const Simd n = fma(x, set(1.44269504088896341f), to_integer) - to_integer;
  Simd r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  Simd y = set(1.381459879e-03f);
  y = fma(y, r, set(8.368716575e-03f));
  y = fma(y, r, set(4.166838899e-02f));
  y = fma(y, r, set(1.666652113e-01f));
  y = fma(y, r, set(4.999999404e-01f));
  y = fma(y, r, set(1.0f));
  y = fma(y, r, set(1.0f));
  return scale(y, n);
}

// 2^a for a <= 127 by a polynomial fitted to relative error on [0, 1) (2e-9 before rounding); within 0.95 ulp. Cheaper
// than exp.
inline Simd Simd::exp2(Simd a) {
  const Simd r = fraction(a);
  Simd y = set(2.17022554e-04f);
  y = fma(y, r, set(1.24396877e-03f));
  y = fma(y, r, set(9.67884059e-03f));
  y = fma(y, r, set(5.54833412e-02f));
  y = fma(y, r, set(2.40229830e-01f));
  y = fma(y, r, set(6.93146992e-01f));
  y = fma(y, r, set(1.0f));
  return scale_by_floor(y, a);
}
#endif

}  // namespace pgm_fast::cpu
