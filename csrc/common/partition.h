// Arithmetic of the partitions, one element at a time: the one source of truth for CPU vectors and CUDA threads.
//
// V is anything with + - *: float, double, or a CPU vector of them.
//   single gate: g = cumsoftmax(z), c = 1 - g (its own scan);   uni = c h, paired = g h
//   dual gate:   e = 1 - cumsoftmax(z_uni), r = cumsoftmax(z_paired), ne = 1 - e, nr = 1 - r (own scans)
//                uni_only = e nr h, paired_only = r ne h, shared = e r h; nobody takes ne nr
//   boundaries:  the dual gate of z_j = -(x_j - center)^2 / 2 width^2, x_j = (j + 1/2) / d, with
//                center = b_uni and 1 - b_paired;
//                uni = (floor + (1 - floor) e) h, paired = (floor + (1 - floor) r) h
// The share of a partition is the mean over a row's gates of what it takes. It adds a constant to the gradient of what
// is taken.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define PGM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PGM_FAST_HOST_DEVICE inline
#endif

namespace pgm_fast {

constexpr double kLog2OfE = 1.4426950408889634;

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

// What the gradient of a row's share adds to those with respect to the first three masses of each of its gates: the
// fourth is what they leave of 1.
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

// What a learner gets of h, as a factor: above is 1 - floor.
template <class V>
PGM_FAST_HOST_DEVICE V open_at_least(V gate, V floor, V above) {
  return floor + above * gate;
}

// A boundary's logits from the largest of them, that of place `peak`, in powers of two: u (tilt - curve u) at place
// peak + u. Distances from the boundary, which may lie far outside of the row, would lose the digits that tell one
// place from the next.
template <class T>
struct Bump {
  T peak, tilt;
};

// A sharper edge than this is a step all the same, a boundary further out too, and products of both stay in order.
constexpr double kSharpest = 1e30;

inline double bump_curve(double width, double d) {
  return std::fmin(kLog2OfE / (2 * width * width * d * d), kSharpest);
}

template <class T>
PGM_FAST_HOST_DEVICE T no_steeper(T x) {
  constexpr T steepest = T(kSharpest);
  return x > steepest ? steepest : x < -steepest ? -steepest : x;
}

// b from the left end of d places, or from the right one.
template <class T>
PGM_FAST_HOST_DEVICE Bump<T> bump(T given, bool from_right, T d, T curve) {
  const T b = no_steeper(given);
  const T center = from_right ? d - b * d : b * d;
  T peak = floor(center) > d - 1 ? d - 1 : floor(center);
  peak = peak > 0 ? peak : T(0);
  const T beyond = from_right ? fma(-b, d, d - peak) : fma(b, d, -peak);
  // no boundary at infinity: NaN, as in the formula
  return {peak, no_steeper(curve * (2 * beyond - 1)) + (given - given)};
}

template <class V>
PGM_FAST_HOST_DEVICE V bump_exponent(V u, V curve, V tilt) {
  return u * (tilt - curve * u);
}

// From the sum over a row of u times the logits' gradients, the factor that makes the gradient of its center: 1 /
// width^2 d.
inline double bump_gradient_factor(double curve, double d) { return 2 * curve * d / kLog2OfE; }

}  // namespace pgm_fast
