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
      Scratch<T> scratch(9, d);
      Exponentials<V> softmax{scratch[2], scratch[3]};
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        const T* logits = read(z, row, scratch[1]);
        softmax.compute(logits, logits + gates, gates, T(temperature));
        T* u = target(uni, row, scratch[4]);
        T* p = target(paired, row, scratch[5]);
        with_stores(bypass, [&](auto store) {
          Complement<V> complement;
          const auto split = [&](int64_t k, auto part, V gate, V not_gate) {
            const V value = part.load(x + k);
            store(part, not_gate * value, u + k);
            store(part, gate * value, p + k);
          };
          if (gates == d) {
            from_right<V>(
                d,
                [&](int64_t k, auto part) {
                  prefetch(x + d + k);
                  split(k, part, softmax.gate(k, part), complement.step(part.load(softmax.e + k), softmax.scale));
                },
                complement);
            return;
          }
          T *gate = scratch[6], *not_gate = scratch[7], *narrow = scratch[8];
          complement_row<V>(softmax, gates, narrow);
          expand(narrow, gates, d, not_gate);
          gate_row<V>(softmax, gates, narrow);
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
      Scratch<T> scratch(12, d);
      Exponentials<V> softmax{scratch[2], scratch[3]};
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        const T* du = read(grad_uni, row, scratch[4]);
        const T* dp = read(grad_paired, row, scratch[5]);
        const T* logits = read(z, row, scratch[1]);
        softmax.compute(logits, logits + gates, gates, T(temperature));
        T* dh = target(grad_h, row, scratch[6]);
        T* dz = target(grad_z, row, scratch[7]);
        T* suffix = scratch[8];
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
            from_right<V>(
                d,
                [&](int64_t k, auto part) {
                  prefetch(x + d + k);
                  prefetch(du + d + k);
                  prefetch(dp + d + k);
                  const V e = part.load(softmax.e + k);
                  const V by_gate = step(k, part, softmax.gate(k, part), complement.step(e, softmax.scale));
                  part.store(gradient.step(by_gate, e), suffix + k);
                },
                complement, gradient);
          } else {
            T *gate = scratch[9], *not_gate = scratch[10], *by_gate = scratch[11];
            complement_row<V>(softmax, gates, by_gate);
            expand(by_gate, gates, d, not_gate);
            gate_row<V>(softmax, gates, by_gate);
            expand(by_gate, gates, d, gate);
            for_each_vector<V>(
                d, [&](int64_t k, auto part) { part.store(step(k, part, part.load(gate + k), part.load(not_gate + k)), by_gate + k); });
            chunk_sum(by_gate, gates, d);
            from_right<V>(
                gates,
                [&](int64_t k, auto part) { part.store(gradient.step(part.load(by_gate + k), part.load(softmax.e + k)), suffix + k); },
                gradient);
          }
          gradient.finish(suffix, softmax, gates, T(temperature), store, dz);
        });
        finish(grad_h, row, dh);
        finish(grad_z, row, dz);
      }
      stream_fence();
    });
  });
}

}  // namespace pgm_fast::cpu
