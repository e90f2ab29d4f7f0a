// Single-gate partition, forward and backward.
#include "../common/partition.h"

#include "kernels.h"
#include "partition_launch.cuh"

namespace pgm_fast::cuda {
namespace {

template <class T>
struct Single : LoadedLogits<T> {
  static constexpr int kGates = 1, kParts = 2, kProducts = 1, kMasses = 1, kShares = 2;

  template <class U>
  Single<U> to() const {
    return {loaded_logits<U>(this->scale)};
  }
  static __device__ __forceinline__ void split(const T (&gate)[1], const T (&complement)[1], T h, T (&part)[2]) {
    part[0] = complement[0] * h;
    part[1] = gate[0] * h;
  }
  // What each partition takes of a gate; its mean over the gates of a row is the partition's share.
  static __device__ __forceinline__ void masses(const T (&gate)[1], const T (&complement)[1], T (&mass)[2]) {
    mass[0] = complement[0];
    mass[1] = gate[0];
  }
  static __device__ __forceinline__ T grad_h(const T (&gate)[1], const T (&complement)[1], const T (&grad)[2]) {
    return single_grad_h(gate[0], complement[0], grad[0], grad[1]);
  }
  // What is summed over the neighbours of a gate, and the gate's gradient from that and from what its share gives to
  // it.
  static __device__ __forceinline__ void products(T h, const T (&grad)[2], T (&product)[1]) {
    product[0] = single_grad_gate(h, grad[0], grad[1]);
  }
  template <bool kShare>
  static __device__ __forceinline__ void grad_gates(const T (&)[1], const T (&)[1], const T (&product)[1],
                                                    const T (&by_share)[1], T (&of_gate)[1]) {
    of_gate[0] = product[0];
    if constexpr (kShare) of_gate[0] += by_share[0];
  }
};

}  // namespace

cudaError_t partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired,
                      cudaStream_t stream) {
  return partition_with_share(rows, h, z, temperature, uni, paired, {}, stream);
}

cudaError_t partition_with_share(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired,
                                 Matrix share, cudaStream_t stream) {
  return launch_partition<false>(Call<Single>{{logits_over(temperature)}, rows, h, {z}, {uni, paired}, share, {}, {}},
                                 stream);
}

cudaError_t partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z,
                               double temperature, Matrix grad_h, Matrix grad_z, cudaStream_t stream) {
  const Call<Single> call{{logits_over(temperature)}, rows,       h,      {z},
                          {grad_uni, grad_paired},    grad_share, grad_h, {grad_z}};
  return launch_partition<true>(call, stream);
}

}  // namespace pgm_fast::cuda
