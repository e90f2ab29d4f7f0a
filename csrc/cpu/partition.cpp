// Single-gate partition, forward and backward: gates recomputed in backward and never stored. One gate per dimension
// takes two passes over a row; one gate per chunk takes a third, over the expanded gates.
#include "../common/partition.h"

#include "gates.h"
#include "kernels.h"
#include "shares.h"

namespace pgm_fast::cpu {
namespace {

template <class V, class Share>
void split_rows(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, Matrix share,
                int threads) {
  using T = typename V::value;
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {h, z, uni, paired});
  parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(7, d);
    SoftmaxRows<V, 1> softmax({{{z, temperature}}}, begin, end);
    for (int64_t row = begin; row < end; ++row, softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      T* u = target(uni, row, scratch[1]);
      T* p = target(paired, row, scratch[2]);
      with_stores(bypass, [&](auto store) {
        Share taken;
        const auto split = [&](int64_t k, auto part, V gate, V not_gate) PGM_FAST_INLINE {
          const V value = part.load(x + k);
          store(part, not_gate * value, u + k);
          store(part, gate * value, p + k);
        };
        if (gates == d) {
          Complement<V> complement;
          softmax.from_right(
              [&](int64_t k, auto part) PGM_FAST_INLINE {
                prefetch(x + d + k);
                const V gate = softmax[0].gate(k, part), not_gate = complement.step(softmax[0], k, part);
                split(k, part, gate, not_gate);
                taken.add({not_gate, gate});
              },
              complement, taken);
        } else {
          T *gate = scratch[3], *not_gate = scratch[4], *narrow = scratch[5], *not_narrow = scratch[6];
          complement_row<V>(softmax[0], gates, not_narrow);
          gate_row<V>(softmax[0], gates, narrow);
          from_left<V>(
              gates,
              [&](int64_t k, auto part)
                  PGM_FAST_INLINE { taken.add({part.load(not_narrow + k), part.load(narrow + k)}); },
              taken);
          expand(not_narrow, gates, d, not_gate);
          expand(narrow, gates, d, gate);
          for_each_vector<V>(
              d, [&](int64_t k, auto part) { split(k, part, part.load(gate + k), part.load(not_gate + k)); });
        }
        taken.store(share, row, gates);
      });
      finish(uni, row, u);
      finish(paired, row, p);
    }
    stream_fence();
  });
}

template <class V, class Share>
void gradient_rows(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z,
                   double temperature, Matrix grad_h, Matrix grad_z, int threads) {
  using T = typename V::value;
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {grad_uni, grad_paired, h, z, grad_h, grad_z});
  parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(9, d);
    SoftmaxRows<V, 1> softmax({{{z, temperature}}}, begin, end);
    for (int64_t row = begin; row < end; ++row, softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      const T* du = read(grad_uni, row, scratch[1]);
      const T* dp = read(grad_paired, row, scratch[2]);
      T* dh = target(grad_h, row, scratch[3]);
      T* dz = target(grad_z, row, scratch[4]);
      T* suffix = scratch[5];
      const Share of_share(grad_share, row, gates);
      with_stores(bypass, [&](auto store) {
        Complement<V> complement;
        GateGradient<V> gradient;
        // stores d loss / d h, returns what the parts give to d loss / d gate
        const auto step = [&](int64_t k, auto part, V gate, V not_gate) PGM_FAST_INLINE {
          const V u = part.load(du + k), p = part.load(dp + k);
          store(part, single_grad_h(gate, not_gate, u, p), dh + k);
          return single_grad_gate(part.load(x + k), u, p);
        };
        const auto scan = [&](int64_t k, auto part, V by_parts) PGM_FAST_INLINE {
          V by_gate[1] = {by_parts};
          of_share.add_to(by_gate, part);
          part.store(gradient.step(by_gate[0], part.load(softmax[0].e + k)), suffix + k);
        };
        if (gates == d) {
          softmax.from_right(
              [&](int64_t k, auto part) PGM_FAST_INLINE {
                for (const T* row_of : {x, du, dp}) prefetch(row_of + d + k);
                scan(k, part, step(k, part, softmax[0].gate(k, part), complement.step(softmax[0], k, part)));
              },
              complement, gradient);
        } else {
          T *gate = scratch[6], *not_gate = scratch[7], *by_gate = scratch[8];
          complement_row<V>(softmax[0], gates, by_gate);
          expand(by_gate, gates, d, not_gate);
          gate_row<V>(softmax[0], gates, by_gate);
          expand(by_gate, gates, d, gate);
          for_each_vector<V>(d, [&](int64_t k, auto part) {
            part.store(step(k, part, part.load(gate + k), part.load(not_gate + k)), by_gate + k);
          });
          chunk_sum(by_gate, gates, d);
          softmax.from_right([&](int64_t k, auto part) PGM_FAST_INLINE { scan(k, part, part.load(by_gate + k)); },
                             gradient);
        }
        gradient.finish(suffix, softmax[0], gates, T(temperature), store, dz);
      });
      finish(grad_h, row, dh);
      finish(grad_z, row, dz);
    }
    stream_fence();
  });
}

}  // namespace

void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, NoShare<V, 2>>(rows, h, z, temperature, uni, paired, {}, threads);
  });
}

void partition_with_share(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, Matrix share,
                          int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, RowShare<V, 2>>(rows, h, z, temperature, uni, paired, share, threads);
  });
}

void partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z,
                        double temperature, Matrix grad_h, Matrix grad_z, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    const auto run =
        grad_share.data == nullptr ? gradient_rows<V, NoGradShare<V, 2, 1>> : gradient_rows<V, GradShare<V, 2, 1>>;
    run(rows, grad_uni, grad_paired, grad_share, h, z, temperature, grad_h, grad_z, threads);
  });
}

}  // namespace pgm_fast::cpu
