// Where the logits of a row's gates come from: from memory, or from a boundary around which they are formed. A split is derived from
// one of them; both give exponentials and the factor of their gradient in Number, float or double.
#pragma once

#include <cmath>

#include "../common/partition.h"
#include "elements.cuh"

namespace pgm_fast::cuda {

// exp((z - largest) / temperature): a row starts with its largest logit.
template <class T>
struct LoadedLogits {
  using Number = T;
  using Start = T;
  static constexpr bool kLoaded = true;
  T factor;  // 1 / temperature

  __device__ __forceinline__ T exponential(T z, T largest) const { return exp((z - largest) * factor); }
};

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
  __device__ __forceinline__ T exponential(T u, const Bump<T>& of) const { return exp2(bump_exponent(u, curve, of.tilt)); }
  __device__ __forceinline__ void store_gradient(int gate, T of_center, const Matrix& to, int64_t row) const {
    store_one(gate == 1 ? -of_center : of_center, to, row);
  }
};

}  // namespace pgm_fast::cuda
