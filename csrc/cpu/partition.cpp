// Single-gate partition, forward and backward: gates recomputed in backward and never stored. One gate per dimension takes two passes
// over a row; one gate per chunk takes a third, over the expanded gates.
#include "../common/partition.h"

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {

void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads) {
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {h, z, uni, paired});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(6, d);
      SoftmaxRows<V, 1> softmax({z}, begin, end, temperature);
      for (int64_t row = begin; row < end; ++row, softmax.advance()) {
        const T* x = read(h, row, scratch[0]);
        T* u = target(uni, row, scratch[1]);
        T* p = target(paired, row, scratch[2]);
        with_stores(bypass, [&](auto store) {
          Complement<V> complement;
          const auto split = [&](int64_t k, auto part, V gate, V not_gate) {
            const V value = part.load(x + k);
            store(part, not_gate * value, u + k);
            store(part, gate * value, p + k);
          };
          if (gates == d) {
            softmax.from_right(
                [&](int64_t k, auto part) {
                  prefetch(x + d + k);
                  split(k, part, softmax[0].gate(k, part), complement.step(softmax[0], k, part));
                },
                complement);
            return;
          }
          T *gate = scratch[3], *not_gate = scratch[4], *narrow = scratch[5];
          complement_row<V>(softmax[0], gates, narrow);
          expand(narrow, gates, d, not_gate);
          gate_row<V>(softmax[0], gates, narrow);
          expand(narrow, gates, d, gate);
          for_each_vector<V>(d, [&](int64_t k, auto part) { split(k, part, part.load(gate + k), part.load(not_gate + k)); });
        });
        finish(uni, row, u);
        finish(paired, row, p);
      }
      stream_fence();
    });
  });
}

void partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix h, Matrix z, double temperature, Matrix grad_h,
                        Matrix grad_z, int threads) {
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {grad_uni, grad_paired, h, z, grad_h, grad_z});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(9, d);
      SoftmaxRows<V, 1> softmax({z}, begin, end, temperature);
      for (int64_t row = begin; row < end; ++row, softmax.advance()) {
        const T* x = read(h, row, scratch[0]);
        const T* du = read(grad_uni, row, scratch[1]);
        const T* dp = read(grad_paired, row, scratch[2]);
        T* dh = target(grad_h, row, scratch[3]);
        T* dz = target(grad_z, row, scratch[4]);
        T* suffix = scratch[5];
        with_stores(bypass, [&](auto store) {
          Complement<V> complement;
          GateGradient<V> gradient;
          // stores d loss / d h, returns d loss / d gate
          const auto step = [&](int64_t k, auto part, V gate, V not_gate) {
            const V u = part.load(du + k), p = part.load(dp + k);
            store(part, single_grad_h(gate, not_gate, u, p), dh + k);
            return single_grad_gate(part.load(x + k), u, p);
          };
          if (gates == d) {
            softmax.from_right(
                [&](int64_t k, auto part) {
                  for (const T* row_of : {x, du, dp}) prefetch(row_of + d + k);
                  const V by_gate = step(k, part, softmax[0].gate(k, part), complement.step(softmax[0], k, part));
                  part.store(gradient.step(by_gate, part.load(softmax[0].e + k)), suffix + k);
                },
                complement, gradient);
          } else {
            T *gate = scratch[6], *not_gate = scratch[7], *by_gate = scratch[8];
            complement_row<V>(softmax[0], gates, by_gate);
            expand(by_gate, gates, d, not_gate);
            gate_row<V>(softmax[0], gates, by_gate);
            expand(by_gate, gates, d, gate);
            for_each_vector<V>(
                d, [&](int64_t k, auto part) { part.store(step(k, part, part.load(gate + k), part.load(not_gate + k)), by_gate + k); });
            chunk_sum(by_gate, gates, d);
            softmax.from_right(
                [&](int64_t k, auto part) { part.store(gradient.step(part.load(by_gate + k), part.load(softmax[0].e + k)), suffix + k); },
                gradient);
          }
          gradient.finish(suffix, softmax[0], gates, T(temperature), store, dz);
        });
        finish(grad_h, row, dh);
        finish(grad_z, row, dz);
      }
      stream_fence();
    });
  });
}

}  // namespace pgm_fast::cpu
