// What the symmetric contrastive loss needs around its matrix products (csrc/torch/info_nce.cpp): rows of unit length,
// the log-sum-exps of rows and columns of products that are l[i][j] * factor, their gradient. Pairs of weight 0 are
// left out. Formulas in pgm_fast/ops/info_nce.py.
#include <limits>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

template <class T>
constexpr T kNone = -std::numeric_limits<T>::infinity();  // a log-sum-exp of nothing
constexpr double kShortest = 1e-12;                       // rows are divided by this length at least
// columns whose maxima and sums wait in registers and the first-level cache
constexpr int64_t kColumns = 64;

template <class V>
typename V::value dot(const typename V::value* x, const typename V::value* y, int64_t n) {
  V sum = V::set(0);
  typename V::value rest = 0;
  int64_t k = 0;
  for (; k + V::width <= n; k += V::width) sum = V::fma(V::load(x + k), V::load(y + k), sum);
  for (; k < n; ++k) rest += x[k] * y[k];
  return sum.sum() + rest;
}

// What is added to products with each partner: 0, or -infinity where the pair does not count.
template <class T>
void hide(const T* weight, int64_t n, T* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = weight[j] != 0 ? T(0) : kNone<T>;
}

template <class V>
typename V::value row_log_sum_exp(const typename V::value* x, const typename V::value* hidden, int64_t n) {
  using T = typename V::value;
  V largest = V::set(kNone<T>);
  T top = kNone<T>;
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) largest = V::max(largest, V::load(x + j) + V::load(hidden + j));
  for (; j < n; ++j) top = std::max(top, x[j] + hidden[j]);
  top = std::max(top, largest.largest());
  if (top == kNone<T>) return top;
  const V shift = V::set(top);
  V sum = V::set(0);
  T rest = 0;
  for (j = 0; j + V::width <= n; j += V::width) sum = sum + V::exp(V::load(x + j) + V::load(hidden + j) - shift);
  for (; j < n; ++j) rest += std::exp(x[j] + hidden[j] - top);
  return top + std::log(sum.sum() + rest);
}

// Of at most kColumns columns that begin at x, rows n apart.
template <class V>
void column_log_sum_exps(const typename V::value* x, const typename V::value* weight, int64_t n, int64_t columns,
                         typename V::value* to) {
  using T = typename V::value;
  T top[kColumns], sum[kColumns];
  std::fill_n(top, kColumns, kNone<T>);
  std::fill_n(sum, kColumns, T(0));
  for (int64_t i = 0; i < n; ++i) {
    if (weight[i] == 0) continue;
    for_each_vector<V>(columns, [&](int64_t j, auto part) {
      part.store(V::max(part.load(top + j), part.load(x + i * n + j)), top + j);
    });
  }
  for (int64_t i = 0; i < n; ++i) {
    if (weight[i] == 0) continue;
    for_each_vector<V>(columns, [&](int64_t j, auto part) {
      // nothing above 0 for V::exp; this order keeps a NaN
      const V below = V::min(V::set(0), part.load(x + i * n + j) - part.load(top + j));
      part.store(part.load(sum + j) + V::exp(below), sum + j);
    });
  }
  for (int64_t j = 0; j < columns; ++j) to[j] = top[j] + std::log(sum[j]);
}

}  // namespace

void info_nce_normalize(int64_t rows, Matrix x, void* norms, Matrix unit, int threads) {
  const int64_t d = x.width;
  dispatch(unit.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(1, d);
      for (int64_t i = begin; i < end; ++i) {
        const T* from = read(x, i, scratch[0]);
        const T norm = std::sqrt(dot<V>(from, from, d));
        static_cast<T*>(norms)[i] = norm;
        // this way around a NaN stays one
        const V length = V::set(norm < T(kShortest) ? T(kShortest) : norm);
        T* to = static_cast<T*>(unit.data) + i * d;
        for_each_vector<V>(d, [&](int64_t k, auto part) { part.store(part.load(from + k) / length, to + k); });
      }
    });
  });
}

void info_nce_log_sum_exps(int64_t n, Matrix products, const void* weight, double factor, void* rows, void* columns,
                           double* losses, int threads) {
  dispatch(products.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = static_cast<const T*>(weight);
    T *x = static_cast<T*>(products.data), *of_rows = static_cast<T*>(rows), *of_columns = static_cast<T*>(columns);
    Scratch<T> hidden(1, n);
    hide(w, n, hidden[0]);
    parallel_rows(n, n, threads, [&](int64_t begin, int64_t end) {
      const V by = V::set(T(factor));
      for (int64_t i = begin; i < end; ++i) {
        T* row = x + i * n;
        for_each_vector<V>(n, [&](int64_t j, auto part) { part.store(part.load(row + j) * by, row + j); });
        of_rows[i] = row_log_sum_exp<V>(row, hidden[0], n);
      }
    });
    parallel_rows((n + kColumns - 1) / kColumns, kColumns * n, threads, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t j = block * kColumns;
        column_log_sum_exps<V>(x + j, w, n, std::min(kColumns, n - j), of_columns + j);
      }
    });
    for (int64_t i = 0; i < n; ++i) {
      const double per_pair = double(of_rows[i]) + double(of_columns[i]) - 2 * double(x[i * n + i]);
      losses[i] = w[i] != 0 ? 0.5 * double(w[i]) * per_pair : 0.0;
    }
  });
}

void info_nce_gradient(int64_t n, Matrix products, const void* weight, double factor, const void* rows,
                       const void* columns, double scale, int threads) {
  dispatch(products.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T *w = static_cast<const T*>(weight), *of_rows = static_cast<const T*>(rows),
            *of_columns = static_cast<const T*>(columns);
    Scratch<T> hidden(1, n);
    hide(w, n, hidden[0]);
    parallel_rows(n, 2 * n, threads, [&](int64_t begin, int64_t end) {
      const V by = V::set(T(factor)), zero = V::set(0);
      for (int64_t i = begin; i < end; ++i) {
        T* row = static_cast<T*>(products.data) + i * n;
        if (w[i] == 0) {
          std::fill_n(row, n, T(0));
          continue;
        }
        const V of_row = V::set(of_rows[i]), own = V::set(T(w[i] * scale)), all = V::set(T(scale));
        for_each_vector<V>(n, [&](int64_t j, auto part) {
          const V l = part.load(row + j) * by + part.load(hidden[0] + j);
          // a product may exceed a log-sum-exp by a rounding, and V::exp takes nothing above 0; this order keeps a NaN
          const V along_row = V::exp(V::min(zero, l - of_row)) * own;
          const V along_column = V::exp(V::min(zero, l - part.load(of_columns + j))) * (part.load(w + j) * all);
          part.store(along_row + along_column, row + j);
        });
        row[i] -= T(2 * w[i] * scale);
      }
    });
  });
}

void info_nce_normalize_backward(int64_t rows, Matrix grad_unit, Matrix unit, const void* norms, Matrix grad,
                                 int threads) {
  const int64_t d = unit.width;
  dispatch(unit.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(1, d);
      for (int64_t i = begin; i < end; ++i) {
        const T *g = static_cast<const T*>(grad_unit.data) + i * d, *u = static_cast<const T*>(unit.data) + i * d;
        const T norm = static_cast<const T*>(norms)[i];
        const V along = V::set(norm > T(kShortest) ? dot<V>(g, u, d) : T(0));
        const V length = V::set(norm < T(kShortest) ? T(kShortest) : norm);
        T* to = target(grad, i, scratch[0]);
        for_each_vector<V>(d, [&](int64_t k, auto part) {
          part.store((part.load(g + k) - part.load(u + k) * along) / length, to + k);
        });
        finish(grad, i, to);
      }
    });
  });
}

}  // namespace pgm_fast::cpu
