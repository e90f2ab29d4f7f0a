// Layer norm of rows and its derivative: with n = (x - mean) * rstd, y = n * weight + bias,
//   grad_x = rstd * (g - mean(g) - n * mean(g * n)),  g = grad_y * weight,
// and the gradients of weight and bias are the sums over rows of grad_y * n and of grad_y. Rows in float or double.
#include <cmath>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

template <class T>
const T* row_of(const Matrix& m, int64_t row) {
  return static_cast<const T*>(m.data) + row * m.width;
}
template <class T>
T* row_to(const Matrix& m, int64_t row) {
  return static_cast<T*>(m.data) + row * m.width;
}

}  // namespace

void layer_norm(int64_t rows, Matrix x, Matrix shift, Matrix weight, Matrix bias, double eps, Matrix y, Matrix mean, Matrix rstd) {
  const int64_t d = x.width;
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T *w = row_of<T>(weight, 0), *b = row_of<T>(bias, 0), *added = row_of<T>(shift, 0);
    for (int64_t row = 0; row < rows; ++row) {
      T* from = row_to<T>(x, row);
      T* to = row_to<T>(y, row);
      RunningSum<V> sum, squares;
      const auto add = [&](int64_t k, auto part) {
        const V value = part.load(from + k) + part.load(added + k);
        part.store(value, from + k);
        sum.add_product(value, V::set(1));
      };
      from_left<V>(d, add, sum);
      const T middle = sum.total() / T(d);
      const auto center = [&](int64_t k, auto part) {
        part.store(part.load(from + k) - V::set(middle), to + k);
        const V centered = part.load(to + k);  // lanes past the end are zero again
        squares.add_product(centered, centered);
      };
      from_left<V>(d, center, squares);
      const T scale = T(1) / std::sqrt(squares.total() / T(d) + T(eps));
      for_each_vector<V>(d, [&](int64_t k, auto part) {
        part.store(V::fma(part.load(to + k) * V::set(scale), part.load(w + k), part.load(b + k)), to + k);
      });
      *row_to<T>(mean, row) = middle;
      *row_to<T>(rstd, row) = scale;
    }
  });
}

void layer_norm_backward(int64_t rows, Matrix grad, Matrix x, Matrix mean, Matrix rstd, Matrix weight, Matrix grad_x) {
  const int64_t d = x.width;
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = row_of<T>(weight, 0);
    for (int64_t row = 0; row < rows; ++row) {
      const T *by = row_of<T>(grad, row), *from = row_of<T>(x, row);
      T* to = row_to<T>(grad_x, row);
      const V middle = V::set(*row_of<T>(mean, row)), scale = V::set(*row_of<T>(rstd, row));
      RunningSum<V> sum, along;
      const auto add = [&](int64_t k, auto part) {
        const V g = part.load(by + k) * part.load(w + k);
        sum.add_product(g, V::set(1));
        along.add_product(g, (part.load(from + k) - middle) * scale);
      };
      from_left<V>(d, add, sum, along);
      const V shift = V::set(sum.total() / T(d)), slope = V::set(along.total() / T(d));
      for_each_vector<V>(d, [&](int64_t k, auto part) {
        const V n = (part.load(from + k) - middle) * scale, g = part.load(by + k) * part.load(w + k);
        part.store((g - shift - n * slope) * scale, to + k);
      });
    }
  });
}

void layer_norm_parameters_backward(int64_t rows, Matrix grad, Matrix x, Matrix mean, Matrix rstd, Matrix grad_weight, Matrix grad_bias) {
  const int64_t d = x.width;
  dispatch(x.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    T *by_weight = row_to<T>(grad_weight, 0), *by_bias = row_to<T>(grad_bias, 0);
    std::fill_n(by_weight, d, T(0));
    std::fill_n(by_bias, d, T(0));
    for (int64_t row = 0; row < rows; ++row) {
      const T *by = row_of<T>(grad, row), *from = row_of<T>(x, row);
      const V middle = V::set(*row_of<T>(mean, row)), scale = V::set(*row_of<T>(rstd, row));
      for_each_vector<V>(d, [&](int64_t k, auto part) {
        const V g = part.load(by + k);
        part.store(V::fma(g, (part.load(from + k) - middle) * scale, part.load(by_weight + k)), by_weight + k);
        part.store(g + part.load(by_bias + k), by_bias + k);
      });
    }
  });
}

}  // namespace pgm_fast::cpu
