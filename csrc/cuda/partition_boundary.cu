// Boundary partition, forward and backward: of a row two numbers are read beside h and its parts.
#include "../common/partition.h"

#include "kernels.h"
#include "partition_launch.cuh"

namespace pgm_fast::cuda {
namespace {

// Gate 0 is the cumulative softmax of the uni-modal bump, so e is its complement; gate 1 that of the paired one.
template <class T>
struct Boundary : BumpLogits<T> {
  static constexpr int kGates = 2, kParts = 2, kProducts = 2, kMasses = 3, kShares = 4;
  T floor, above;  // above is 1 - floor
  bool detached;

  template <class U>
  Boundary<U> to() const {
    return {{static_cast<U>(this->curve), static_cast<U>(this->factor)},
            static_cast<U>(floor),
            static_cast<U>(above),
            detached};
  }
  __device__ __forceinline__ void split(const T (&gate)[2], const T (&complement)[2], T h, T (&part)[2]) const {
    part[0] = open_at_least(complement[0], floor, above) * h;
    part[1] = open_at_least(gate[1], floor, above) * h;
  }
  static __device__ __forceinline__ void masses(const T (&gate)[2], const T (&complement)[2], T (&mass)[4]) {
    dual_masses(complement[0], gate[0], gate[1], complement[1], mass);
  }
  __device__ __forceinline__ T grad_h(const T (&gate)[2], const T (&complement)[2], const T (&grad)[2]) const {
    return open_at_least(complement[0], floor, above) * grad[0] + open_at_least(gate[1], floor, above) * grad[1];
  }
  // The gates' gradients: from the parts, and from what the share gives to each mass.
  __device__ __forceinline__ void products(T h, const T (&grad)[2], T (&product)[2]) const {
    product[0] = detached ? T(0) : -above * h * grad[0];
    product[1] = detached ? T(0) : above * h * grad[1];
  }
  template <bool kShare>
  static __device__ __forceinline__ void grad_gates(const T (&gate)[2], const T (&complement)[2], const T (&product)[2],
                                                    const T (&by_share)[3], T (&of_gate)[2]) {
    of_gate[0] = product[0];
    of_gate[1] = product[1];
    if constexpr (kShare) {
      const T e = complement[0], ne = gate[0], r = gate[1], nr = complement[1];
      of_gate[0] += dual_grad_uni_gate(r, nr, by_share[0], by_share[1], by_share[2]);
      of_gate[1] += dual_grad_paired_gate(e, ne, by_share[0], by_share[1], by_share[2]);
    }
  }
};

Boundary<double> boundary(double width, double floor, bool detached, int64_t d) {
  const double curve = bump_curve(width, static_cast<double>(d));
  return {{curve, bump_gradient_factor(curve, static_cast<double>(d))}, floor, 1 - floor, detached};
}

}  // namespace

cudaError_t partition_boundary(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor,
                               bool detach_gates, Matrix uni, Matrix paired, cudaStream_t stream) {
  return partition_boundary_with_share(rows, h, b_uni, b_paired, width, floor, detach_gates, uni, paired, {}, stream);
}

cudaError_t partition_boundary_with_share(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width,
                                          double floor, bool detach_gates, Matrix uni, Matrix paired, Matrix share,
                                          cudaStream_t stream) {
  const auto split = boundary(width, floor, detach_gates, h.width);
  return launch_partition<false>(Call<Boundary>{split, rows, h, {b_uni, b_paired}, {uni, paired}, share, {}, {}},
                                 stream);
}

cudaError_t partition_boundary_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h,
                                        Matrix b_uni, Matrix b_paired, double width, double floor, bool detach_gates,
                                        Matrix grad_h, Matrix grad_b_uni, Matrix grad_b_paired, cudaStream_t stream) {
  const Call<Boundary> call{boundary(width, floor, detach_gates, h.width),
                            rows,
                            h,
                            {b_uni, b_paired},
                            {grad_uni, grad_paired},
                            grad_share,
                            grad_h,
                            {grad_b_uni, grad_b_paired}};
  return launch_partition<true>(call, stream);
}

}  // namespace pgm_fast::cuda
