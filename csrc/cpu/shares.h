// The share of each partition in a row, the mean over the row's gates of what it takes, summed up as the gates form;
// and its gradient, added as theirs form. Kernels are compiled with and without, so that who asks for no share pays for
// none.
#pragma once

#include "../common/partition.h"
#include "gates.h"

namespace pgm_fast::cpu {

// Of one row after another.
template <class V, int kPartitions>
struct RowShare {
  using T = typename V::value;
  RunningSum<V> sums[kPartitions];

  void add(const V (&mass)[kPartitions]) {
    for (int n = 0; n < kPartitions; ++n) sums[n].add(mass[n]);
  }
  void settle() {
    for (auto& sum : sums) sum.settle();
  }
  // share is of the computation's type
  void store(const Matrix& share, int64_t row, int64_t gates) const {
    T* to = static_cast<T*>(share.data) + row * kPartitions;
    for (int n = 0; n < kPartitions; ++n) to[n] = sums[n].total() / static_cast<T>(gates);
  }
};
template <class V, int kPartitions>
struct NoShare {
  void add(const V (&)[kPartitions]) {}
  void settle() {}
  void store(const Matrix&, int64_t, int64_t) const {}
};

// What the gradient of a row's share adds to each gate's products, from which the gates' gradients are made.
template <class V, int kPartitions, int kProducts>
struct GradShare {
  using T = typename V::value;
  V by_product[kProducts];

  GradShare(const Matrix& grad_share, int64_t row, int64_t gates) {
    T converted[kPartitions], grad[kPartitions], by[kProducts];
    std::copy_n(read(grad_share, row, converted), kPartitions, grad);
    spread_grad_share(grad, static_cast<T>(gates), by);
    for (int n = 0; n < kProducts; ++n) by_product[n] = V::set(by[n]);
  }
  template <class Part>
  void add_to(V (&products)[kProducts], Part part) const {
    for (int n = 0; n < kProducts; ++n) products[n] = products[n] + part.clear(by_product[n]);
  }
};
template <class V, int kPartitions, int kProducts>
struct NoGradShare {
  NoGradShare(const Matrix&, int64_t, int64_t) {}
  template <class Part>
  void add_to(V (&)[kProducts], Part) const {}
};

}  // namespace pgm_fast::cpu
