// bfloat16 and float16 rows to float and back, rounding to nearest even.
#include "matrix.h"

namespace pgm_fast::cpu {
namespace {

uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
float value(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

uint16_t to_bfloat16(float x) {
  const uint32_t u = bits(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return x == x ? static_cast<uint16_t>(rounded) : uint16_t{0x7fc0};
}

// Without F16C. The scalings move the exponent between the two biases and make the hardware round subnormals.
float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return value(sign | 0x70000000u | magnitude);  // infinity and NaN
  return value(sign | bits(value(magnitude) * 0x1p112f));
}
uint16_t float_to_half(float x) {
  const uint32_t u = bits(x);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds past the largest half
  if (magnitude < 0x38800000u) {                        // subnormal: let a float addition round it
    return sign | static_cast<uint16_t>(bits(value(magnitude) + 0.5f) - bits(0.5f));
  }
  return sign | static_cast<uint16_t>((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13);
}

}  // namespace

void to_float(const Matrix& from, int64_t row, float* to) {
  const auto* source = static_cast<const uint16_t*>(from.data) + row * from.width;
  const int64_t n = from.width;
  int64_t k = 0;
  if (from.dtype == Dtype::bfloat16) {
    for (; k < n; ++k) to[k] = value(static_cast<uint32_t>(source[k]) << 16);
    return;
  }
#if defined(__AVX512F__)
  for (; k + 16 <= n; k += 16) {
    _mm512_storeu_ps(to + k, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + k))));
  }
#elif defined(__F16C__)
  for (; k + 8 <= n; k += 8) {
    _mm256_storeu_ps(to + k, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + k))));
  }
#endif
  for (; k < n; ++k) to[k] = half_to_float(source[k]);
}

void from_float(const float* from, const Matrix& to, int64_t row) {
  auto* goal = static_cast<uint16_t*>(to.data) + row * to.width;
  const int64_t n = to.width;
  int64_t k = 0;
  if (to.dtype == Dtype::bfloat16) {
    for (; k < n; ++k) goal[k] = to_bfloat16(from[k]);
    return;
  }
#if defined(__AVX512F__)
  for (; k + 16 <= n; k += 16) {
    const __m256i half = _mm512_cvtps_ph(_mm512_loadu_ps(from + k), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(goal + k), half);
  }
#elif defined(__F16C__)
  for (; k + 8 <= n; k += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + k), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(goal + k), half);
  }
#endif
  for (; k < n; ++k) goal[k] = float_to_half(from[k]);
}

}  // namespace pgm_fast::cpu
