// What the decoder does beside its matrix products: bias, residual and squared error in one pass over the product, and
// the gradient of both outputs in one pass. The residual is decoded - target and is formed again in backward.
#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

template <class T>
T weight_of(const void* row_weight, int64_t row, int64_t rows) {
  return row_weight == nullptr ? T(1) / T(rows) : static_cast<const T*>(row_weight)[row];
}

}  // namespace

void reconstruction_loss(int64_t rows, Matrix decoded, Matrix bias, Matrix target, const void* row_weight, double* loss,
                         int threads) {
  const int64_t d = decoded.width;
  dispatch(decoded.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(4, d);
      const T* b = bias.data == nullptr ? nullptr : read(bias, 0, scratch[0]);
      for (int64_t row = begin; row < end; ++row) {
        if (b != nullptr) {
          const T* product = read(decoded, row, scratch[1]);
          T* sum = cpu::target(decoded, row, scratch[2]);
          for_each_vector<V>(
              d, [&](int64_t k, auto part) { part.store(part.load(product + k) + part.load(b + k), sum + k); });
          finish(decoded, row, sum);
        }
        // measured on what is returned, after its rounding
        const T *x = read(decoded, row, scratch[1]), *goal = read(target, row, scratch[3]);
        RunningSum<V> squares;
        from_left<V>(
            d,
            [&](int64_t k, auto part) {
              const V residual = part.load(x + k) - part.load(goal + k);
              squares.add_product(residual, residual);
            },
            squares);
        loss[row] = static_cast<double>(weight_of<T>(row_weight, row, rows)) * squares.total() / static_cast<double>(d);
      }
    });
  });
}

void reconstruction_gradient(int64_t rows, Matrix grad_decoded, Matrix decoded, Matrix target, const void* row_weight,
                             double grad_loss, Matrix grad, Matrix grad_target, int threads) {
  const int64_t d = decoded.width;
  dispatch(decoded.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    parallel_rows(rows, d, threads, [&](int64_t begin, int64_t end) {
      Scratch<T> scratch(5, d);
      for (int64_t row = begin; row < end; ++row) {
        const T* by_head = read(grad_decoded, row, scratch[0]);
        const T *x = read(decoded, row, scratch[1]), *goal = read(target, row, scratch[2]);
        T* sum = cpu::target(grad, row, scratch[3]);
        T* by_target = grad_target.data == nullptr ? nullptr : cpu::target(grad_target, row, scratch[4]);
        const V factor = V::set(T(weight_of<T>(row_weight, row, rows) * T(2 * grad_loss / static_cast<double>(d))));
        for_each_vector<V>(d, [&](int64_t k, auto part) {
          const V by_loss = (part.load(x + k) - part.load(goal + k)) * factor;
          part.store(part.load(by_head + k) + by_loss, sum + k);
          if (by_target != nullptr) part.store(V::set(0) - by_loss, by_target + k);
        });
        finish(grad, row, sum);
        if (by_target != nullptr) finish(grad_target, row, by_target);
      }
    });
  });
}

}  // namespace pgm_fast::cpu
