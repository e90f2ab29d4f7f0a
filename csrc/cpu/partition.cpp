// Single-gate partition, forward and backward: one pass over each row, gates recomputed in backward and never stored.
#include "../common/partition.h"

#include "gates.h"
#include "kernels.h"
#include "stores.h"

namespace pgm_fast::cpu {

void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads) {
  const int64_t d = h.width, gates = z.width;
  const bool bypass = bypasses_cache(rows, {h, z, uni, paired});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(9, d);
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        cumsoftmax<V>(read(z, row, scratch[1]), gates, T(temperature), scratch[2], scratch[3], scratch[4]);
        const T* gate = expand(scratch[3], gates, d, scratch[5]);
        const T* complement = expand(scratch[4], gates, d, scratch[6]);
        T* u = target(uni, row, scratch[7]);
        T* p = target(paired, row, scratch[8]);
        write_row<V>(d, bypass, [&](int64_t k, auto part, auto store) {
          const V value = part.load(x + k);
          store(part.load(complement + k) * value, u + k);
          store(part.load(gate + k) * value, p + k);
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
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        const T* du = read(grad_uni, row, scratch[9]);
        const T* dp = read(grad_paired, row, scratch[10]);
        cumsoftmax<V>(read(z, row, scratch[1]), gates, T(temperature), scratch[2], scratch[3], scratch[4]);
        const T* gate = expand(scratch[3], gates, d, scratch[5]);
        const T* complement = expand(scratch[4], gates, d, scratch[6]);
        T* dh = target(grad_h, row, scratch[7]);
        T* by_gate = scratch[8];
        write_row<V>(d, bypass, [&](int64_t k, auto part, auto store) {
          const V value = part.load(x + k), u = part.load(du + k), p = part.load(dp + k);
          store(single_grad_h(part.load(gate + k), part.load(complement + k), u, p), dh + k);
          part.store(single_grad_gate(value, u, p), by_gate + k);
        });
        chunk_sum(by_gate, gates, d);
        T* dz = target(grad_z, row, scratch[11]);
        cumsoftmax_backward<V>(by_gate, scratch[2], gates, T(temperature), dz);
        finish(grad_h, row, dh);
        finish(grad_z, row, dz);
      }
      stream_fence();
    });
  });
}

}  // namespace pgm_fast::cpu
