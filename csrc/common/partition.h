// Arithmetic of the partitions, one element at a time: the one source of truth for CPU vectors and CUDA threads.
//
// V is anything with + - *: float, double, or a CPU vector of them.
//   single gate: g = cumsoftmax(z), c = 1 - g (its own scan);   uni = c h, paired = g h
//   dual gate:   e = 1 - cumsoftmax(z_uni), r = cumsoftmax(z_paired), ne = 1 - e, nr = 1 - r (own scans)
//                uni_only = e nr h, paired_only = r ne h, shared = e r h; nobody takes ne nr
// The share of a partition is the mean over a row's gates of what it takes. It adds a constant to the gradient of what is taken.
#pragma once

#if defined(__CUDACC__)
#define PGM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PGM_FAST_HOST_DEVICE inline
#endif

namespace pgm_fast {

// d loss / d h for the single gate.
template <class V>
PGM_FAST_HOST_DEVICE V single_grad_h(V gate, V complement, V grad_uni, V grad_paired) {
  return complement * grad_uni + gate * grad_paired;
}

// d loss / d g for the single gate, without what the share adds.
template <class V>
PGM_FAST_HOST_DEVICE V single_grad_gate(V h, V grad_uni, V grad_paired) {
  return (grad_paired - grad_uni) * h;
}

// What the gradient of a row's share (uni, paired) adds to that of each of its gates.
template <class T>
PGM_FAST_HOST_DEVICE void spread_grad_share(const T (&grad)[2], T gates, T (&by_gate)[1]) {
  by_gate[0] = (grad[1] - grad[0]) / gates;
}

// What the partitions of the dual gate take: uni-only, paired-only, shared, and what is left.
template <class V>
PGM_FAST_HOST_DEVICE void dual_masses(V e, V ne, V r, V nr, V (&mass)[4]) {
  mass[0] = e * nr;
  mass[1] = r * ne;
  mass[2] = e * r;
  mass[3] = ne * nr;
}

// d loss / d h for the dual gate.
template <class V>
PGM_FAST_HOST_DEVICE V dual_grad_h(V e, V ne, V r, V nr, V grad_uni, V grad_paired, V grad_shared) {
  return e * (nr * grad_uni + r * grad_shared) + (r * ne) * grad_paired;
}

// What the gradient of a row's share adds to those with respect to the first three masses of each of its gates: the fourth is what they
// leave of 1.
template <class T>
PGM_FAST_HOST_DEVICE void spread_grad_share(const T (&grad)[4], T gates, T (&by_mass)[3]) {
  for (int n = 0; n < 3; ++n) by_mass[n] = (grad[n] - grad[3]) / gates;
}

// d loss / d cumsoftmax(z_uni) = -d loss / d e, per gate, from gradients with respect to the first three masses.
template <class V>
PGM_FAST_HOST_DEVICE V dual_grad_uni_gate(V r, V nr, V by_uni, V by_paired, V by_shared) {
  return (by_paired - by_shared) * r - by_uni * nr;
}

// d loss / d r, per gate, from the same.
template <class V>
PGM_FAST_HOST_DEVICE V dual_grad_paired_gate(V e, V ne, V by_uni, V by_paired, V by_shared) {
  return by_paired * ne + (by_shared - by_uni) * e;
}

}  // namespace pgm_fast
