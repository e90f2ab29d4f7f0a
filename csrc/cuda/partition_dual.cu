// Dual-gate partition, forward and backward.
#include "../common/partition.h"

#include "kernels.h"
#include "partition_launch.cuh"

namespace pgm_fast::cuda {
namespace {

// Gate 0 is the cumulative softmax of z_uni, so e is its complement; gate 1 that of z_paired.
template <class T>
struct Dual : LoadedLogits<T> {
  static constexpr int kGates = 2, kParts = 3, kProducts = 3, kMasses = 3, kShares = 4;

  template <class U>
  Dual<U> to() const {
    return {loaded_logits<U>(this->scale)};
  }
  static __device__ __forceinline__ void split(const T (&gate)[2], const T (&complement)[2], T h, T (&part)[3]) {
    const T e = complement[0], ne = gate[0], r = gate[1], nr = complement[1];
    const T of_e = e * h;
    part[0] = of_e * nr;
    part[1] = r * ne * h;
    part[2] = of_e * r;
  }
  // What each partition takes of both gates at one place; its mean over the gates of a row is the partition's share.
  static __device__ __forceinline__ void masses(const T (&gate)[2], const T (&complement)[2], T (&mass)[4]) {
    dual_masses(complement[0], gate[0], gate[1], complement[1], mass);
  }
  static __device__ __forceinline__ T grad_h(const T (&gate)[2], const T (&complement)[2], const T (&grad)[3]) {
    return dual_grad_h(complement[0], gate[0], gate[1], complement[1], grad[0], grad[1], grad[2]);
  }
  // What is summed over the neighbours of a gate, and the gates' gradients from that and from what the share gives to
  // each mass.
  static __device__ __forceinline__ void products(T h, const T (&grad)[3], T (&product)[3]) {
    for (int n = 0; n < 3; ++n) product[n] = grad[n] * h;
  }
  template <bool kShare>
  static __device__ __forceinline__ void grad_gates(const T (&gate)[2], const T (&complement)[2], const T (&product)[3],
                                                    const T (&by_share)[3], T (&of_gate)[2]) {
    const T e = complement[0], ne = gate[0], r = gate[1], nr = complement[1];
    T by[3] = {product[0], product[1], product[2]};
    if constexpr (kShare) {
      for (int n = 0; n < 3; ++n) by[n] += by_share[n];
    }
    of_gate[0] = dual_grad_uni_gate(r, nr, by[0], by[1], by[2]);
    of_gate[1] = dual_grad_paired_gate(e, ne, by[0], by[1], by[2]);
  }
};

}  // namespace

cudaError_t partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                           Matrix paired_only, Matrix shared, cudaStream_t stream) {
  return partition_dual_with_share(rows, h, z_uni, z_paired, temperature, uni_only, paired_only, shared, {}, stream);
}

cudaError_t partition_dual_with_share(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                                      Matrix uni_only, Matrix paired_only, Matrix shared, Matrix share,
                                      cudaStream_t stream) {
  const Call<Dual> call{{logits_over(temperature)},      rows,  h,  {z_uni, z_paired},
                        {uni_only, paired_only, shared}, share, {}, {}};
  return launch_partition<false>(call, stream);
}

cudaError_t partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared,
                                    Matrix grad_share, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                                    Matrix grad_h, Matrix grad_z_uni, Matrix grad_z_paired, cudaStream_t stream) {
  const Call<Dual> call{{logits_over(temperature)},           rows,       h,      {z_uni, z_paired},
                        {grad_uni, grad_paired, grad_shared}, grad_share, grad_h, {grad_z_uni, grad_z_paired}};
  return launch_partition<true>(call, stream);
}

}  // namespace pgm_fast::cuda
