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

// exp((z - largest) / temperature) as a power of two: a row starts with its largest logit.
template <class T>
struct LoadedLogits {
  using Number = T;
  using Start = T;
  static constexpr bool kLoaded = true;
  T scale;   // log2(e) / temperature
  T factor;  // 1 / temperature, of the gradient

  __device__ __forceinline__ T exponential(T z, T largest) const { return power_of_two((z - largest) * scale); }
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
