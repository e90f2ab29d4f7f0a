// Single-gate partition, forward and backward: gates recomputed in backward and never stored. One gate per dimension takes two passes
// over a row; one gate per chunk takes a third, over the expanded gates.
#include "../common/partition.h"

#include "gates.h"
#include "kernels.h"
#include "shares.h"

namespace pgm_fast::cpu {

void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads) {
  partition_with_share(rows, h, z, temperature, uni, paired, {}, threads);
}

void partition_with_share(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, Matrix share, int threads) {
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {h, z, uni, paired});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(7, d);
      SoftmaxRows<V, 1> softmax({z}, begin, end, temperature);
      for (int64_t row = begin; row < end; ++row, softmax.advance()) {
        const T* x = read(h, row, scratch[0]);
        T* u = target(uni, row, scratch[1]);
        T* p = target(paired, row, scratch[2]);
        with_stores(bypass, [&](auto store) {
          const auto split = [&](int64_t k, auto part, V gate, V not_gate) {
            const V value = part.load(x + k);
            store(part, not_gate * value, u + k);
            store(part, gate * value, p + k);
          };
          with_share<V, 2>(share, [&](auto taken) {
            if (gates == d) {
              Complement<V> complement;
              softmax.from_right(
                  [&](int64_t k, auto part) {
                    prefetch(x + d + k);
                    const V gate = softmax[0].gate(k, part), not_gate = complement.step(softmax[0], k, part);
                    split(k, part, gate, not_gate);
                    taken.add({not_gate, gate});
                  },
                  complement, taken);
            } else {
              T *gate = scratch[3], *not_gate = scratch[4], *of_gates = scratch[5], *of_complements = scratch[6];
              complement_row<V>(softmax[0], gates, of_complements);
              gate_row<V>(softmax[0], gates, of_gates);
              from_left<V>(
                  gates, [&](int64_t k, auto part) { taken.add({part.load(of_complements + k), part.load(of_gates + k)}); }, taken);
              expand(of_complements, gates, d, not_gate);
              expand(of_gates, gates, d, gate);
              for_each_vector<V>(d, [&](int64_t k, auto part) { split(k, part, part.load(gate + k), part.load(not_gate + k)); });
            }
            taken.store(share, row, gates);
          });
        });
        finish(uni, row, u);
        finish(paired, row, p);
      }
      stream_fence();
    });
  });
}

void partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z, double temperature,
                        Matrix grad_h, Matrix grad_z, int threads) {
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
        const V by_share = V::set(single_grad_share(GradShare<T, 2>(grad_share, row).by, T(gates)));
        with_stores(bypass, [&](auto store) {
          Complement<V> complement;
          GateGradient<V> gradient;
          // stores d loss / d h, returns d loss / d gate by the parts
          const auto step = [&](int64_t k, auto part, V gate, V not_gate) {
            const V u = part.load(du + k), p = part.load(dp + k);
            store(part, single_grad_h(gate, not_gate, u, p), dh + k);
            return single_grad_gate(part.load(x + k), u, p);
          };
          if (gates == d) {
            softmax.from_right(
                [&](int64_t k, auto part) {
                  for (const T* row_of : {x, du, dp}) prefetch(row_of + d + k);
                  const V by_parts = step(k, part, softmax[0].gate(k, part), complement.step(softmax[0], k, part));
                  part.store(gradient.step(by_parts + part.clear(by_share), part.load(softmax[0].e + k)), suffix + k);
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
                [&](int64_t k, auto part) {
                  const V by_parts = part.load(by_gate + k);
                  part.store(gradient.step(by_parts + part.clear(by_share), part.load(softmax[0].e + k)), suffix + k);
                },
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
