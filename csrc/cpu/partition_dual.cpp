// Dual-gate partition, forward and backward: gates recomputed in backward and never stored. One gate per dimension
// takes two passes over a row; one gate per chunk takes a third, over the expanded gates.
#include "../common/partition.h"

#include "dual_gate.h"
#include "kernels.h"
#include "shares.h"

namespace pgm_fast::cpu {
namespace {

// Both gates of one row after another, and where one stands for several dimensions, as rows.
template <class V>
struct DualGateRows : DualGate<V> {
  using T = typename V::value;

  DualGateRows(const Matrix& z_uni, const Matrix& z_paired, int64_t begin, int64_t end, double temperature, int64_t d)
      : DualGate<V>({z_uni, temperature}, {z_paired, temperature}, begin, end), rows(5, d) {}

  // The gates as rows [gates], and then as rows [d].
  void store(int64_t gates) {
    complement_row<V>(this->softmax[0], gates, rows[0]);
    gate_row<V>(this->softmax[0], gates, rows[1]);
    gate_row<V>(this->softmax[1], gates, rows[2]);
    complement_row<V>(this->softmax[1], gates, rows[3]);
  }
  void expand(int64_t gates, int64_t d) {
    for (int row = 0; row < 4; ++row) {
      std::copy_n(rows[row], gates, rows[4]);
      cpu::expand(rows[4], gates, d, rows[row]);
    }
  }
  template <class Part>
  Gates<V> stored(int64_t k, Part part) {
    return {part.load(rows[0] + k), part.load(rows[1] + k), part.load(rows[2] + k), part.load(rows[3] + k)};
  }

  Scratch<T> rows;
};

template <class V, class Share>
void split_rows(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                Matrix paired_only, Matrix shared, Matrix share, int threads) {
  using T = typename V::value;
  const int64_t d = h.width, gates = z_uni.width;
  const bool bypass = bypasses_cache(rows, {h, z_uni, z_paired, uni_only, paired_only, shared});
  parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
    DualGateRows<V> gate(z_uni, z_paired, begin, end, temperature, d);
    Scratch<T> scratch(4, d);
    for (int64_t row = begin; row < end; ++row, gate.softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      T* u = target(uni_only, row, scratch[1]);
      T* p = target(paired_only, row, scratch[2]);
      T* s = target(shared, row, scratch[3]);
      with_stores(bypass, [&](auto store) {
        Share taken;
        const auto split = [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
          const V value = part.load(x + k), by_e = at.e * value;
          store(part, by_e * at.nr, u + k);
          store(part, at.r * value * at.ne, p + k);
          store(part, by_e * at.r, s + k);
        };
        if (gates == d) {
          gate.from_right(
              [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
                prefetch(x + d + k);
                split(k, part, at);
                at.add_to(taken);
              },
              taken);
        } else {
          gate.store(gates);
          from_left<V>(gates, [&](int64_t k, auto part) PGM_FAST_INLINE { gate.stored(k, part).add_to(taken); }, taken);
          gate.expand(gates, d);
          for_each_vector<V>(d, [&](int64_t k, auto part) { split(k, part, gate.stored(k, part)); });
        }
        taken.store(share, row, gates);
      });
      finish(uni_only, row, u);
      finish(paired_only, row, p);
      finish(shared, row, s);
    }
    stream_fence();
  });
}

template <class V, class Share>
void gradient_rows(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix grad_share, Matrix h,
                   Matrix z_uni, Matrix z_paired, double temperature, Matrix grad_h, Matrix grad_z_uni,
                   Matrix grad_z_paired, int threads) {
  using T = typename V::value;
  const int64_t d = h.width, gates = z_uni.width;
  const bool bypass =
      bypasses_cache(rows, {grad_uni, grad_paired, grad_shared, h, z_uni, z_paired, grad_h, grad_z_uni, grad_z_paired});
  parallel_rows(rows, 2 * d, threads, [&](int64_t begin, int64_t end) {
    DualGateRows<V> gate(z_uni, z_paired, begin, end, temperature, d);
    Scratch<T> scratch(12, d);
    for (int64_t row = begin; row < end; ++row, gate.softmax.advance()) {
      const T* x = read(h, row, scratch[0]);
      const T* du = read(grad_uni, row, scratch[1]);
      const T* dp = read(grad_paired, row, scratch[2]);
      const T* ds = read(grad_shared, row, scratch[3]);
      T* dh = target(grad_h, row, scratch[4]);
      T* dz_uni = target(grad_z_uni, row, scratch[5]);
      T* dz_paired = target(grad_z_paired, row, scratch[6]);
      T *suffix_uni = scratch[7], *suffix_paired = scratch[8];
      const Share of_share(grad_share, row, gates);
      with_stores(bypass, [&](auto store) {
        GateGradient<V> gradient_uni, gradient_paired;
        // from each part's gradient times h
        const auto scan = [&](int64_t k, auto part, const Gates<V>& at, V u, V p, V s) PGM_FAST_INLINE {
          V by[3] = {u, p, s};
          of_share.add_to(by, part);
          const V by_uni = dual_grad_uni_gate(at.r, at.nr, by[0], by[1], by[2]);
          const V by_paired = dual_grad_paired_gate(at.e, at.ne, by[0], by[1], by[2]);
          part.store(gradient_uni.step(by_uni, part.load(gate.softmax[0].e + k)), suffix_uni + k);
          part.store(gradient_paired.step(by_paired, part.load(gate.softmax[1].e + k)), suffix_paired + k);
        };
        if (gates == d) {
          gate.from_right(
              [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
                for (const T* row_of : {x, du, dp, ds}) prefetch(row_of + d + k);
                const V value = part.load(x + k), u = part.load(du + k), p = part.load(dp + k), s = part.load(ds + k);
                store(part, dual_grad_h(at.e, at.ne, at.r, at.nr, u, p, s), dh + k);
                scan(k, part, at, u * value, p * value, s * value);
              },
              gradient_uni, gradient_paired);
        } else {
          T *by_uni = scratch[9], *by_paired = scratch[10], *by_shared = scratch[11];
          gate.store(gates);
          gate.expand(gates, d);
          for_each_vector<V>(d, [&](int64_t k, auto part) {
            const V value = part.load(x + k), u = part.load(du + k), p = part.load(dp + k), s = part.load(ds + k);
            const Gates<V> at = gate.stored(k, part);
            store(part, dual_grad_h(at.e, at.ne, at.r, at.nr, u, p, s), dh + k);
            part.store(u * value, by_uni + k);
            part.store(p * value, by_paired + k);
            part.store(s * value, by_shared + k);
          });
          chunk_sum(by_uni, gates, d);
          chunk_sum(by_paired, gates, d);
          chunk_sum(by_shared, gates, d);
          gate.from_right(
              [&](int64_t k, auto part, const Gates<V>& at) PGM_FAST_INLINE {
                scan(k, part, at, part.load(by_uni + k), part.load(by_paired + k), part.load(by_shared + k));
              },
              gradient_uni, gradient_paired);
        }
        gradient_uni.finish(suffix_uni, gate.softmax[0], gates, T(temperature), store, dz_uni);
        gradient_paired.finish(suffix_paired, gate.softmax[1], gates, T(temperature), store, dz_paired);
      });
      finish(grad_h, row, dh);
      finish(grad_z_uni, row, dz_uni);
      finish(grad_z_paired, row, dz_paired);
    }
    stream_fence();
  });
}

}  // namespace

void partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                    Matrix paired_only, Matrix shared, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, NoShare<V, 4>>(rows, h, z_uni, z_paired, temperature, uni_only, paired_only, shared, {}, threads);
  });
}

void partition_dual_with_share(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                               Matrix uni_only, Matrix paired_only, Matrix shared, Matrix share, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    split_rows<V, RowShare<V, 4>>(rows, h, z_uni, z_paired, temperature, uni_only, paired_only, shared, share, threads);
  });
}

void partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix grad_share,
                             Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix grad_h,
                             Matrix grad_z_uni, Matrix grad_z_paired, int threads) {
  dispatch(h.dtype, [&](auto vector) {
    using V = decltype(vector);
    const auto run =
        grad_share.data == nullptr ? gradient_rows<V, NoGradShare<V, 4, 3>> : gradient_rows<V, GradShare<V, 4, 3>>;
    run(rows, grad_uni, grad_paired, grad_shared, grad_share, h, z_uni, z_paired, temperature, grad_h, grad_z_uni,
        grad_z_paired, threads);
  });
}

}  // namespace pgm_fast::cpu
