// The share of each partition in a row, the mean over the row's gates of what it takes, summed up as the gates form.
#pragma once

#include "gates.h"

namespace pgm_fast::cpu {

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

// The same where no share is asked for.
template <class V, int kPartitions>
struct NoShare {
  void add(const V (&)[kPartitions]) {}
  void settle() {}
  void store(const Matrix&, int64_t, int64_t) const {}
};

template <class V, int kPartitions, class Body>
inline void with_share(const Matrix& share, Body&& body) {
  if (share.data != nullptr) {
    body(RowShare<V, kPartitions>{});
  } else {
    body(NoShare<V, kPartitions>{});
  }
}

// The gradient of a row's share; zeros where there is none.
template <class T, int kPartitions>
struct GradShare {
  T by[kPartitions] = {};

  GradShare(const Matrix& grad_share, int64_t row) {
    if (grad_share.data == nullptr) return;
    T converted[kPartitions];
    std::copy_n(read(grad_share, row, converted), kPartitions, by);
  }
};

}  // namespace pgm_fast::cpu
