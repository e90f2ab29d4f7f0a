// The two gates of the dual partition, of one row after another, whatever their exponents come from.
#pragma once

#include "../common/partition.h"
#include "gates.h"

namespace pgm_fast::cpu {

// Both gates at one place: e, 1 - e, r, 1 - r.
template <class V>
struct Gates {
  V e, ne, r, nr;

  template <class Share>
  void add_to(Share& taken) const {
    V mass[4];
    dual_masses(e, ne, r, nr, mass);
    taken.add(mass);
  }
};

template <class V, class Exponents = Logits<V>>
struct DualGate {
  DualGate(const Exponents& uni, const Exponents& paired, int64_t begin, int64_t end)
      : softmax({uni, paired}, begin, end) {}

  // Where there is a gate per dimension: calls body(k, part, gates) from the right.
  template <class Body, class... Sums>
  PGM_FAST_INLINE void from_right(Body&& body, Sums&... sums) {
    Complement<V> after_uni, after_paired;
    softmax.from_right(
        [&](int64_t k, auto part) PGM_FAST_INLINE {
          body(k, part,
               Gates<V>{after_uni.step(softmax[0], k, part), softmax[0].gate(k, part), softmax[1].gate(k, part),
                        after_paired.step(softmax[1], k, part)});
        },
        after_uni, after_paired, sums...);
  }

  SoftmaxRows<V, 2, Exponents> softmax;
};

}  // namespace pgm_fast::cpu
