// Dual-gate partition, forward and backward: one pass over each row, gates recomputed in backward and never stored.
#include "../common/partition.h"

#include "gates.h"
#include "kernels.h"
#include "stores.h"

namespace pgm_fast::cpu {
namespace {

// Both gates of a row, expanded to [d]: e, 1 - e, r, 1 - r, and the softmaxes they come from.
template <class V>
struct DualGate {
  using T = typename V::value;

  explicit DualGate(int64_t d) : rows(12, d), width(d) {}

  void compute(const Matrix& z_uni, const Matrix& z_paired, int64_t row, T temperature) {
    const int64_t gates = z_uni.width;
    cumsoftmax<V>(read(z_uni, row, rows[0]), gates, temperature, rows[1], rows[2], rows[3]);
    cumsoftmax<V>(read(z_paired, row, rows[0]), gates, temperature, rows[4], rows[5], rows[6]);
    p_uni = rows[1];
    p_paired = rows[4];
    ne = expand(rows[2], gates, width, rows[8]);
    e = expand(rows[3], gates, width, rows[9]);
    r = expand(rows[5], gates, width, rows[10]);
    nr = expand(rows[6], gates, width, rows[11]);
  }

  Scratch<T> rows;
  int64_t width;
  const T *p_uni, *p_paired, *e, *ne, *r, *nr;
};

}  // namespace

void partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only, Matrix paired_only,
                    Matrix shared, int threads) {
  const int64_t d = h.width;
  const bool bypass = bypasses_cache(rows, {h, z_uni, z_paired, uni_only, paired_only, shared});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
      DualGate<V> gate(d);
      Scratch<T> scratch(4, d);
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        gate.compute(z_uni, z_paired, row, T(temperature));
        T* u = target(uni_only, row, scratch[1]);
        T* p = target(paired_only, row, scratch[2]);
        T* s = target(shared, row, scratch[3]);
        write_row<V>(d, bypass, [&](int64_t k, auto part, auto store) {
          const V value = part.load(x + k), e = part.load(gate.e + k), r = part.load(gate.r + k);
          store(e * part.load(gate.nr + k) * value, u + k);
          store(r * part.load(gate.ne + k) * value, p + k);
          store(e * r * value, s + k);
        });
        finish(uni_only, row, u);
        finish(paired_only, row, p);
        finish(shared, row, s);
      }
      stream_fence();
    });
  });
}

void partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix h, Matrix z_uni,
                             Matrix z_paired, double temperature, Matrix grad_h, Matrix grad_z_uni, Matrix grad_z_paired, int threads) {
  const int64_t d = h.width, gates = z_uni.width;
  const bool bypass =
      bypasses_cache(rows, {grad_uni, grad_paired, grad_shared, h, z_uni, z_paired, grad_h, grad_z_uni, grad_z_paired});
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
      DualGate<V> gate(d);
      Scratch<T> scratch(11, d);
      for (int64_t row = begin; row < end; ++row) {
        const T* x = read(h, row, scratch[0]);
        const T* du = read(grad_uni, row, scratch[1]);
        const T* dp = read(grad_paired, row, scratch[2]);
        const T* ds = read(grad_shared, row, scratch[3]);
        gate.compute(z_uni, z_paired, row, T(temperature));
        T* dh = target(grad_h, row, scratch[4]);
        T *by_uni = scratch[5], *by_paired = scratch[6], *by_shared = scratch[7];
        const auto gate_gradients = [&](int64_t k, auto part, V u, V p, V s, const T* e, const T* ne, const T* r, const T* nr) {
          part.store(dual_grad_uni_gate(part.load(r + k), part.load(nr + k), u, p, s), by_uni + k);
          part.store(dual_grad_paired_gate(part.load(e + k), part.load(ne + k), u, p, s), by_paired + k);
        };
        write_row<V>(d, bypass, [&](int64_t k, auto part, auto store) {
          const V value = part.load(x + k), u = part.load(du + k), p = part.load(dp + k), s = part.load(ds + k);
          const V e = part.load(gate.e + k), ne = part.load(gate.ne + k);
          const V r = part.load(gate.r + k), nr = part.load(gate.nr + k);
          store(dual_grad_h(e, ne, r, nr, u, p, s), dh + k);
          if (gates == d) {
            gate_gradients(k, part, u * value, p * value, s * value, gate.e, gate.ne, gate.r, gate.nr);
          } else {
            part.store(u * value, by_uni + k);
            part.store(p * value, by_paired + k);
            part.store(s * value, by_shared + k);
          }
        });
        if (gates != d) {
          chunk_sum(by_uni, gates, d);
          chunk_sum(by_paired, gates, d);
          chunk_sum(by_shared, gates, d);
          for_each_vector<V>(gates, [&](int64_t k, auto part) {
            const V u = part.load(by_uni + k), p = part.load(by_paired + k), s = part.load(by_shared + k);
            gate_gradients(k, part, u, p, s, gate.rows[3], gate.rows[2], gate.rows[5], gate.rows[6]);
          });
        }
        T* dz_uni = target(grad_z_uni, row, scratch[8]);
        T* dz_paired = target(grad_z_paired, row, scratch[9]);
        cumsoftmax_backward<V>(by_uni, gate.p_uni, gates, T(temperature), dz_uni);
        cumsoftmax_backward<V>(by_paired, gate.p_paired, gates, T(temperature), dz_paired);
        finish(grad_h, row, dh);
        finish(grad_z_uni, row, dz_uni);
        finish(grad_z_paired, row, dz_paired);
      }
      stream_fence();
    });
  });
}

}  // namespace pgm_fast::cpu
