// Predictions mixed by a softmaxed gate, with the cross-entropies of the mixture and of each. A row at a time,
// probabilities recomputed in backward.
#include <cmath>
#include <limits>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

// The softmax of a row: exp(x - top), whose sum is 1 / scale.
template <class V>
struct Softmax {
  using T = typename V::value;
  T top, sum;

  T scale() const { return T(1) / sum; }
  T log_sum() const { return top + std::log(sum); }
};

// Hands each vector of exponentials to keep(at, part, e).
template <class V, class Keep>
PGM_FAST_INLINE inline Softmax<V> softmax(const typename V::value* x, int64_t n, Keep&& keep) {
  const auto top = largest<V>(x, n);
  const V shift = V::set(top);
  RunningSum<V> total;
  const auto exponential = [&](int64_t at, auto part) PGM_FAST_INLINE {
    // past the end e^0, because what underflows takes a hundred times as long
    const V e = part.clear(V::exp(part.load(x + at, shift) - shift));
    keep(at, part, e);
    total.add(e);
  };
  from_left<V>(n, exponential, total);
  return {top, total.total()};
}

template <class V>
Softmax<V> softmax_into(const typename V::value* x, int64_t n, typename V::value* e) {
  return softmax<V>(x, n, [e](int64_t at, auto part, V value) PGM_FAST_INLINE { part.store(value, e + at); });
}

template <class V>
void weigh(const typename V::value* gate, int64_t n, typename V::value* weights) {
  const V scale = V::set(softmax_into<V>(gate, n, weights).scale());
  for_each_vector<V>(n, [&](int64_t at, auto part) { part.store(part.load(weights + at) * scale, weights + at); });
}

// to = sum_k weights[k] logits[k]
template <class V>
void mix(const typename V::value* weights, const std::vector<const typename V::value*>& logits, int64_t mixed,
         int64_t classes, typename V::value* to) {
  for_each_vector<V>(classes, [&](int64_t at, auto part) {
    V total = V::set(0);
    for (int64_t k = 0; k < mixed; ++k) total = total + V::set(weights[k]) * part.load(logits[k] + at);
    part.store(total, to + at);
  });
}

// A label outside of the classes reads nothing and shows as NaN.
template <class V>
typename V::value cross_entropy(const typename V::value* x, int64_t label, int64_t classes) {
  using T = typename V::value;
  if (label < 0 || label >= classes) return std::numeric_limits<T>::quiet_NaN();
  return softmax<V>(x, classes, [](int64_t, auto, V) {}).log_sum() - x[label];
}

}  // namespace

void gated_mixture(int64_t rows, Matrix gate, const std::vector<Matrix>& logits, uintptr_t labels, Matrix fused,
                   uintptr_t weights, uintptr_t losses, int threads) {
  const int64_t mixed = gate.width, scored = static_cast<int64_t>(logits.size()), classes = fused.width;
  const auto* label = reinterpret_cast<const int64_t*>(labels);
  dispatch(fused.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, 4 * scored * classes, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(static_cast<int>(scored) + 2, std::max(classes, mixed));
      std::vector<const T*> x(scored);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = 0; k < scored; ++k) x[k] = read(logits[k], row, scratch[static_cast<int>(k)]);
        T* const w = reinterpret_cast<T*>(weights) + row * mixed;
        weigh<V>(read(gate, row, scratch[static_cast<int>(scored)]), mixed, w);
        T* const together = scratch[static_cast<int>(scored) + 1];
        mix<V>(w, x, mixed, classes, together);
        T* const out = target(fused, row, together);
        if (out != together) std::copy_n(together, classes, out);
        finish(fused, row, together);
        if (label == nullptr) continue;
        T* const loss = reinterpret_cast<T*>(losses) + row * (1 + scored);
        loss[0] = cross_entropy<V>(together, label[row], classes);
        for (int64_t k = 0; k < scored; ++k) loss[1 + k] = cross_entropy<V>(x[k], label[row], classes);
      }
    });
  });
}

void gated_mixture_backward(int64_t rows, Matrix grad_fused, uintptr_t grad_weights, uintptr_t grad_losses, Matrix gate,
                            const std::vector<Matrix>& logits, uintptr_t labels, Matrix grad_gate,
                            const std::vector<Matrix>& grad_logits, int threads) {
  const int64_t mixed = gate.width, scored = static_cast<int64_t>(logits.size()), classes = grad_fused.width;
  const auto* label = reinterpret_cast<const int64_t*>(labels);
  dispatch(grad_fused.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, 6 * scored * classes, threads, [&](int64_t begin, int64_t end) {
      const int first = static_cast<int>(scored);
      Scratch<T> scratch(first + 8, std::max(classes, mixed));
      std::vector<const T*> x(scored);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = 0; k < scored; ++k) x[k] = read(logits[k], row, scratch[static_cast<int>(k)]);
        T* const w = scratch[first];
        weigh<V>(read(gate, row, scratch[first + 1]), mixed, w);
        const T* const by_loss = label ? reinterpret_cast<const T*>(grad_losses) + row * (1 + scored) : nullptr;
        const bool known = label && label[row] >= 0 && label[row] < classes;
        T* const e = scratch[first + 2];

        // gradient of the mixture: its own and that of its loss, whose part at the label is p - 1
        const T* grad = read(grad_fused, row, scratch[first + 7]);
        if (label) {
          T *const together = scratch[first + 5], *const both = scratch[first + 3];
          mix<V>(w, x, mixed, classes, together);
          const T scale = softmax_into<V>(together, classes, e).scale();
          const V by_p = V::set(by_loss[0] * scale);
          for_each_vector<V>(classes, [&](int64_t at, auto part) {
            part.store(V::fma(by_p, part.load(e + at), part.load(grad + at)), both + at);
          });
          if (known) {
            const int64_t at = label[row];
            both[at] = grad[at] + by_loss[0] * (e[at] * scale - T(1));
          }
          grad = both;
        }

        T* const dw = scratch[first + 6];
        T mean = 0;
        for (int64_t k = 0; k < scored; ++k) {
          const T by_own = label ? by_loss[1 + k] : T(0), by_mixture = k < mixed ? w[k] : T(0);
          T* const out = target(grad_logits[k], row, scratch[first + 4]);
          RunningSum<V> dot;
          T scale = 0;
          if (label) {
            scale = softmax_into<V>(x[k], classes, e).scale();
            const V by_p = V::set(by_own * scale), by_grad = V::set(by_mixture);
            const auto both = [&](int64_t at, auto part) PGM_FAST_INLINE {
              const V incoming = part.load(grad + at);
              part.store(V::fma(by_p, part.load(e + at), by_grad * incoming), out + at);
              dot.add_product(incoming, part.load(x[k] + at));
            };
            from_left<V>(classes, both, dot);
          } else {
            const V by_grad = V::set(by_mixture);
            const auto only = [&](int64_t at, auto part) PGM_FAST_INLINE {
              const V incoming = part.load(grad + at);
              part.store(by_grad * incoming, out + at);
              dot.add_product(incoming, part.load(x[k] + at));
            };
            from_left<V>(classes, only, dot);
          }
          if (known) {
            const int64_t at = label[row];
            out[at] = by_own * (e[at] * scale - T(1)) + by_mixture * grad[at];
          }
          finish(grad_logits[k], row, out);
          if (k < mixed) {
            dw[k] = reinterpret_cast<const T*>(grad_weights)[row * mixed + k] + dot.total();
            mean += w[k] * dw[k];
          }
        }
        T* const out = target(grad_gate, row, scratch[first + 1]);
        for (int64_t k = 0; k < mixed; ++k) out[k] = w[k] * (dw[k] - mean);
        finish(grad_gate, row, out);
      }
    });
  });
}

}  // namespace pgm_fast::cpu
