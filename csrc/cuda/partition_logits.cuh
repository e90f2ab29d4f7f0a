// Where the logits of a row's gates come from: from memory, or from a boundary around which they are formed. A split is
// derived from one of them; both give exponentials and the factor of their gradient in Number, float or double.
#pragma once

#include <cmath>
#include <limits>

#include "../common/partition.h"
#include "elements.cuh"

namespace pgm_fast::cuda {

// 2^x in one instruction, where exp takes about seven. What is below the smallest normal number becomes 0.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return exp2(x);
#endif
}
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

// Rounding can carry a scan past 1; a NaN stays one.
__device__ __forceinline__ float at_most_one(float x) { return x > 1.0f ? 1.0f : x; }

// To the last digit but one, of what is neither tiny nor huge.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// What exponentials of a row are formed with: 2^(z scale - shift), in one rounding. All have the same shift, so its own
// rounding cancels in the softmax.
template <class T>
struct Peak {
  T scale, shift;
};

// exp((z - largest) / temperature) as a power of two.
template <class T>
struct LoadedLogits {
  using Number = T;
  using Start = Peak<T>;
  static constexpr bool kLoaded = true;
  static constexpr T kMost = std::numeric_limits<T>::max() / 4;
  T scale;   // log2(e) / temperature
  T factor;  // 1 / temperature, of the gradient

  // At a temperature so small that the largest logit would overflow the softmax is a step, and stays one.
  __device__ __forceinline__ Start peak(T largest) const {
    const T kept = fmin(scale, kMost * reciprocal(fabs(largest)));
    return {kept, largest * kept};
  }
  __device__ __forceinline__ T exponential(T z, const Start& of) const {
    return power_of_two(fma(z, of.scale, -of.shift));
  }
};

// Kept finite and above 0 in T: what is 0 or -inf from the largest logit must not become NaN.
template <class T>
LoadedLogits<T> loaded_logits(double scale) {
  using Limits = std::numeric_limits<T>;
  const double kept =
      std::fmin(std::fmax(scale, static_cast<double>(Limits::min())), static_cast<double>(Limits::max()));
  return {static_cast<T>(kept), static_cast<T>(kept / kLog2OfE)};
}
inline LoadedLogits<double> logits_over(double temperature) { return loaded_logits<double>(kLog2OfE / temperature); }

// Those of a bump, at a place u from its peak. Gate 0 ends at its boundary from the left, gate 1 from the right.
template <class T>
struct BumpLogits {
  using Number = T;
  using Start = Bump<T>;
  static constexpr bool kLoaded = false;
  T curve;
  T factor;  // of the gradient of its center

  __device__ __forceinline__ Bump<T> start(int gate, const Matrix& boundaries, int64_t row, T d) const {
    return bump(load_one<T>(boundaries, row), gate == 1, d, curve);
  }
  __device__ __forceinline__ T exponential(T u, const Bump<T>& of) const {
    return power_of_two(bump_exponent(u, curve, of.tilt));
  }
  __device__ __forceinline__ void store_gradient(int gate, T of_center, const Matrix& to, int64_t row) const {
    store_one(gate == 1 ? -of_center : of_center, to, row);
  }
};

}  // namespace pgm_fast::cuda
