// Sums, maxima and scans over the lanes of a warp, always in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace pgm_fast::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

// Sum over lanes 0 .. this one.
template <class T>
__device__ __forceinline__ T prefix_sum(T x) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_up_sync(kAllLanes, x, distance);
    if (lane_index() >= distance) x += other;
  }
  return x;
}

// Sum over this lane .. 31.
template <class T>
__device__ __forceinline__ T suffix_sum(T x) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T other = __shfl_down_sync(kAllLanes, x, distance);
    if (lane_index() + distance < kWarp) x += other;
  }
  return x;
}

// An inclusive scan's value of the lane before (0 for lane 0), or after (0 for lane 31): the exclusive scan with no
// subtraction.
template <class T>
__device__ __forceinline__ T of_lane_before(T scanned) {
  const T other = __shfl_up_sync(kAllLanes, scanned, 1);
  return lane_index() == 0 ? T(0) : other;
}
template <class T>
__device__ __forceinline__ T of_lane_after(T scanned) {
  const T other = __shfl_down_sync(kAllLanes, scanned, 1);
  return lane_index() == kWarp - 1 ? T(0) : other;
}

// Sums over the lanes before this one, after it, and over all: lanes meet ever larger blocks on the other side of them.
// Nothing is ever a difference of sums. With LANES < 32, of each LANES lanes by themselves, as in what follows.
template <int LANES = kWarp, class T>
__device__ __forceinline__ void sums_around(T x, T& before, T& after, T& total) {
  before = 0;
  after = 0;
  total = x;
#pragma unroll
  for (int distance = 1; distance < LANES; distance *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, total, distance);
    if (lane_index() & distance) {
      before += other;
    } else {
      after += other;
    }
    total += other;
  }
}

template <int LANES = kWarp, class T>
__device__ __forceinline__ T lanes_sum(T x) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

// A NaN loses here; it reaches the outputs through the sums.
template <int LANES = kWarp, class T>
__device__ __forceinline__ T lanes_maximum(T x) {
#pragma unroll
  for (int distance = LANES / 2; distance > 0; distance /= 2) x = fmax(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

}  // namespace pgm_fast::cuda
