// What is left of the contrastive loss on chosen dimensions around its matrix products (csrc/torch/duc_loss.cpp): a
// block of rows, whose products with all teachers are l[i][j] * factor, pair `first + i` being row i's own. Pairs of
// weight 0 are left out.
#include <limits>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

// What is added to the products with each teacher: 0, or -infinity where the pair does not count.
template <class T>
void hide(const void* weight, int64_t n, T* to) {
  const T* w = static_cast<const T*>(weight);
  for (int64_t j = 0; j < n; ++j) to[j] = w[j] != 0 ? T(0) : -std::numeric_limits<T>::infinity();
}

// x = x * factor + hidden; the largest of them
template <class V>
typename V::value scale_and_hide(typename V::value* x, const typename V::value* hidden, int64_t n, double factor) {
  using T = typename V::value;
  const V by = V::set(T(factor));
  V largest = V::set(-std::numeric_limits<T>::infinity());
  T top = -std::numeric_limits<T>::infinity();
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) {
    const V value = V::load(x + j) * by + V::load(hidden + j);
    value.store(x + j);
    largest = V::max(largest, value);
  }
  for (; j < n; ++j) {
    x[j] = x[j] * T(factor) + hidden[j];
    top = std::max(top, x[j]);
  }
  return std::max(top, largest.largest());
}

}  // namespace

void duc_log_sum_exp(int64_t rows, Matrix products, const void* weight, int64_t first, double factor, void* lse,
                     double* losses, int threads) {
  const int64_t n = products.width;
  dispatch(products.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = static_cast<const T*>(weight);
    Scratch<T> hidden(1, n);
    hide(weight, n, hidden[0]);
    parallel_rows(rows, n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* x = static_cast<T*>(products.data) + i * n;
        const T top = scale_and_hide<V>(x, hidden[0], n, factor);
        const V shift = V::set(top);
        V sum = V::set(0);
        T rest = 0;
        int64_t j = 0;
        for (; j + V::width <= n; j += V::width) sum = sum + V::exp(V::load(x + j) - shift);
        for (; j < n; ++j) rest += std::exp(x[j] - top);
        const T total = top + std::log(sum.sum() + rest);
        static_cast<T*>(lse)[i] = total;
        const T own = w[first + i];
        losses[i] = own != 0 ? double(own) * (double(total) - double(x[first + i])) : 0.0;
      }
    });
  });
}

void duc_teacher_weights(int64_t rows, Matrix products, const void* weight, int64_t first, double factor,
                         const void* lse, bool scaled, int threads) {
  const int64_t n = products.width;
  dispatch(products.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = static_cast<const T*>(weight);
    Scratch<T> hidden(1, n);
    if (!scaled) hide(weight, n, hidden[0]);
    parallel_rows(rows, n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* x = static_cast<T*>(products.data) + i * n;
        const T by = w[first + i] * T(factor);
        if (by == 0) {
          std::fill_n(x, n, T(0));
          continue;
        }
        if (!scaled) scale_and_hide<V>(x, hidden[0], n, factor);
        const V shift = V::set(static_cast<const T*>(lse)[i]), scale = V::set(by);
        // a product may exceed the log-sum-exp by a rounding, and V::exp takes nothing above 0; this order keeps a NaN
        for_each_vector<V>(n, [&](int64_t j, auto part) {
          part.store(V::exp(V::min(V::set(0), part.load(x + j) - shift)) * scale, x + j);
        });
        x[first + i] -= by;
      }
    });
  });
}

void duc_scatter(int64_t rows, Matrix by_dim, const int64_t* dims, double factor, Matrix grad, int64_t first) {
  const int64_t count = by_dim.width, d = grad.width;
  dispatch(by_dim.dtype, [&](auto vector) {
    using T = typename decltype(vector)::value;
    Scratch<T> scratch(1, d);
    for (int64_t i = 0; i < rows; ++i) {
      const T* from = static_cast<const T*>(by_dim.data) + i * count;
      T* to = target(grad, first + i, scratch[0]);
      std::fill_n(to, d, T(0));
      for (int64_t k = 0; k < count; ++k) to[dims[k]] = from[k] * T(factor);
      finish(grad, first + i, to);
    }
  });
}

}  // namespace pgm_fast::cpu
