// Predictions mixed by a softmaxed gate, with the cross-entropies of the mixture and of each. A row at a time,
// probabilities recomputed in backward.
#include <cmath>
#include <limits>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

// p = softmax(x); returns log sum exp(x).
template <class V>
typename V::value softmax(const typename V::value* x, int64_t n, typename V::value* p) {
  using T = typename V::value;
  T top = -std::numeric_limits<T>::infinity();
  for (int64_t k = 0; k < n; ++k) top = x[k] > top ? x[k] : top;
  const V shift = V::set(top);
  RunningSum<V> total;
  const auto exponential = [&](int64_t at, auto part) PGM_FAST_INLINE {
    const V e = V::exp(part.load(x + at) - shift);
    part.store(e, p + at);
    total.add(part.clear(e));
  };
  from_left<V>(n, exponential, total);
  const T sum = total.total();
  const V scale = V::set(T(1) / sum);
  for_each_vector<V>(n, [&](int64_t at, auto part) { part.store(part.load(p + at) * scale, p + at); });
  return top + std::log(sum);
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
template <class T>
T cross_entropy(T log_sum, const T* x, int64_t label, int64_t classes) {
  return label >= 0 && label < classes ? log_sum - x[label] : std::numeric_limits<T>::quiet_NaN();
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
      Scratch<T> scratch(static_cast<int>(scored) + 3, std::max(classes, mixed));
      std::vector<const T*> x(scored);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = 0; k < scored; ++k) x[k] = read(logits[k], row, scratch[static_cast<int>(k)]);
        T* const w = reinterpret_cast<T*>(weights) + row * mixed;
        softmax<V>(read(gate, row, scratch[static_cast<int>(scored)]), mixed, w);
        T* const together = scratch[static_cast<int>(scored) + 1];
        mix<V>(w, x, mixed, classes, together);
        T* const out = target(fused, row, together);
        if (out != together) std::copy_n(together, classes, out);
        finish(fused, row, together);
        if (label == nullptr) continue;
        T* const loss = reinterpret_cast<T*>(losses) + row * (1 + scored);
        T* const unused = scratch[static_cast<int>(scored) + 2];
        loss[0] = cross_entropy(softmax<V>(together, classes, unused), together, label[row], classes);
        for (int64_t k = 0; k < scored; ++k) {
          loss[1 + k] = cross_entropy(softmax<V>(x[k], classes, unused), x[k], label[row], classes);
        }
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
      Scratch<T> scratch(first + 7, std::max(classes, mixed));
      std::vector<const T*> x(scored);
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t k = 0; k < scored; ++k) x[k] = read(logits[k], row, scratch[static_cast<int>(k)]);
        T* const w = scratch[first];
        softmax<V>(read(gate, row, scratch[first + 1]), mixed, w);
        const T* const by_loss = label ? reinterpret_cast<const T*>(grad_losses) + row * (1 + scored) : nullptr;
        const bool known = label && label[row] >= 0 && label[row] < classes;
        T* const p = scratch[first + 2];

        // gradient of the mixture: its own and that of its loss
        T* const grad = scratch[first + 3];
        std::copy_n(read(grad_fused, row, scratch[first + 4]), classes, grad);
        if (label) {
          mix<V>(w, x, mixed, classes, scratch[first + 5]);
          softmax<V>(scratch[first + 5], classes, p);
          if (known) p[label[row]] -= T(1);
          for_each_vector<V>(classes, [&](int64_t at, auto part) {
            part.store(part.load(grad + at) + V::set(by_loss[0]) * part.load(p + at), grad + at);
          });
        }

        T* const dw = scratch[first + 6];
        T mean = 0;
        for (int64_t k = 0; k < scored; ++k) {
          if (label) {
            softmax<V>(x[k], classes, p);
            if (known) p[label[row]] -= T(1);
          } else {
            std::fill_n(p, classes, T(0));
          }
          const V by_own = V::set(label ? by_loss[1 + k] : T(0)), by_mixture = V::set(k < mixed ? w[k] : T(0));
          T* const out = target(grad_logits[k], row, scratch[first + 4]);
          RunningSum<V> dot;
          const auto both = [&](int64_t at, auto part) PGM_FAST_INLINE {
            const V incoming = part.load(grad + at);
            part.store(by_own * part.load(p + at) + by_mixture * incoming, out + at);
            dot.add_product(incoming, part.load(x[k] + at));
          };
          from_left<V>(classes, both, dot);
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
