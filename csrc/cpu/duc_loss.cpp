// Contrastive loss on chosen dimensions, forward and backward: a block of rows against all, its products kept only while it lasts.
//
// l_ij = <student_i, teacher_j> / temperature over dims; loss_i = weight_i (logsumexp_j l_ij - l_ii), pairs of weight 0 left out;
// grad_i = scale weight_i / temperature (sum_j softmax_j l_ij teacher_j - teacher_i) on dims, 0 elsewhere.
#include <limits>

#include "gates.h"
#include "kernels.h"

namespace pgm_fast::cpu {
namespace {

// A thread holds the products of this many rows with all others, and the chosen dimensions of this many teachers: with 4096 rows and
// 512 dimensions 1.7 MiB, 2.6 % of the matrix of products, and gathering teachers anew for each block costs a tenth of multiplying.
constexpr int64_t kRows = 64;
constexpr int64_t kTeachers = 256;

struct Dims {
  const int64_t* at;
  int64_t count;
};

template <class T>
void gather(const Matrix& from, int64_t row, Dims dims, T* scratch, T* to) {
  const T* x = read(from, row, scratch);
  for (int64_t k = 0; k < dims.count; ++k) to[k] = x[dims.at[k]];
}

template <class V, int R, int C>
void dot_tile(const typename V::value* a, const typename V::value* b, int64_t stride, int64_t k, typename V::value factor,
              typename V::value* to, int64_t to_stride) {
  V sums[R][C];
  for (auto& row : sums)
    for (V& sum : row) sum = V::set(0);
  for_each_vector<V>(k, [&](int64_t at, auto part) {
    V left[R];
    for (int i = 0; i < R; ++i) left[i] = part.load(a + i * stride + at);
    for (int j = 0; j < C; ++j) {
      const V right = part.load(b + j * stride + at);
      for (int i = 0; i < R; ++i) sums[i][j] = sums[i][j] + left[i] * right;
    }
  });
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < C; ++j) to[i * to_stride + j] = sums[i][j].sum() * factor;
}

// to[i][j] = factor <a_i, b_j>: rows of k values, `stride` apart
template <class V>
void dot_products(const typename V::value* a, int64_t rows, const typename V::value* b, int64_t columns, int64_t stride, int64_t k,
                  typename V::value factor, typename V::value* to, int64_t to_stride) {
  // as many sums as there are registers for: 32 with 16 lanes, 16 with fewer
  constexpr int R = V::width == 16 ? 4 : 2, C = 4;
  for (int64_t j = 0; j < columns;) {
    const bool wide = j + C <= columns;
    for (int64_t i = 0; i < rows;) {
      const auto *left = a + i * stride, *right = b + j * stride;
      auto* goal = to + i * to_stride + j;
      const bool tall = i + R <= rows;
      if (tall && wide) {
        dot_tile<V, R, C>(left, right, stride, k, factor, goal, to_stride);
      } else if (tall) {
        dot_tile<V, R, 1>(left, right, stride, k, factor, goal, to_stride);
      } else if (wide) {
        dot_tile<V, 1, C>(left, right, stride, k, factor, goal, to_stride);
      } else {
        dot_tile<V, 1, 1>(left, right, stride, k, factor, goal, to_stride);
      }
      i += tall ? R : 1;
    }
    j += wide ? C : 1;
  }
}

// to[i][k] += sum_j p[i][j] b[j][k] for R rows
template <class V, int R>
void add_mixture(const typename V::value* p, int64_t p_stride, const typename V::value* b, int64_t columns, int64_t stride, int64_t k,
                 typename V::value* to) {
  for_each_vector<V>(k, [&](int64_t at, auto part) {
    V sums[R];
    for (int i = 0; i < R; ++i) sums[i] = part.load(to + i * stride + at);
    for (int64_t j = 0; j < columns; ++j) {
      const V right = part.load(b + j * stride + at);
      for (int i = 0; i < R; ++i) sums[i] = sums[i] + V::set(p[i * p_stride + j]) * right;
    }
    for (int i = 0; i < R; ++i) part.store(sums[i], to + i * stride + at);
  });
}

// What a thread needs for a block of rows.
template <class V>
class Block {
 public:
  using T = typename V::value;

  Block(int64_t rows, Matrix student, Matrix teacher, Dims dims, const T* weight, double temperature)
      : rows_(rows), student_(student), teacher_(teacher), dims_(dims), weight_(weight), factor_(T(1 / temperature)),
        row_(1, student.width), own_(kRows, dims.count), others_(std::min(rows, kTeachers), dims.count),
        products_(static_cast<int>(std::min(rows, kRows)), rows) {}

  // Products of rows [begin, end) with all, -infinity where a pair does not count.
  void multiply(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) gather(student_, i, dims_, row_[0], own_[i - begin]);
    for_others([&](int64_t first, int64_t count) {
      dot_products<V>(own_[0], end - begin, others_[0], count, others_.stride(), dims_.count, factor_, products_[0] + first,
                      products_.stride());
    });
    for (int64_t j = 0; j < rows_; ++j) {
      if (weight_[j] != 0) continue;
      for (int64_t i = 0; i < end - begin; ++i) products_[i][j] = -std::numeric_limits<T>::infinity();
    }
  }

  T log_sum_exp(int64_t i) {
    const T* x = products_[i];
    T top = -std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < rows_; ++j) top = std::max(top, x[j]);
    const V shift = V::set(top);
    V sum = V::set(0);
    T rest = 0;
    int64_t j = 0;
    for (; j + V::width <= rows_; j += V::width) sum = sum + V::exp(V::load(x + j) - shift);
    for (; j < rows_; ++j) rest += std::exp(x[j] - top);
    return top + std::log(sum.sum() + rest);
  }

  // Turns the products of row i into what its teachers weigh in its gradient.
  void differentiate(int64_t i, int64_t row, T lse, T scale) {
    T* x = products_[i];
    const V shift = V::set(lse), by = V::set(scale * weight_[row] * factor_);
    // a product may exceed the log-sum-exp by a rounding, and V::exp takes nothing above 0; this order keeps a NaN
    for_each_vector<V>(rows_, [&](int64_t j, auto part) {
      part.store(V::exp(V::min(V::set(0), part.load(x + j) - shift)) * by, x + j);
    });
    x[row] -= scale * weight_[row] * factor_;
  }

  // Gradients of `count` rows whose products are differentiated; they take the place of the students.
  void mix(int64_t count) {
    constexpr int R = V::width == 16 ? 8 : 4;
    for (int64_t i = 0; i < count; ++i) std::fill_n(own_[i], dims_.count, T(0));
    for_others([&](int64_t first, int64_t teachers) {
      int64_t i = 0;
      for (; i + R <= count; i += R) {
        add_mixture<V, R>(products_[i] + first, products_.stride(), others_[0], teachers, others_.stride(), dims_.count, own_[i]);
      }
      for (; i < count; ++i) {
        add_mixture<V, 1>(products_[i] + first, products_.stride(), others_[0], teachers, others_.stride(), dims_.count, own_[i]);
      }
    });
  }

  const T* products(int64_t i) { return products_[i]; }
  const T* own(int64_t i) { return own_[i]; }
  T* row() { return row_[0]; }

 private:
  template <class Body>
  void for_others(Body&& body) {
    for (int64_t first = 0; first < rows_; first += kTeachers) {
      const int64_t count = std::min(kTeachers, rows_ - first);
      // one chunk stays as it is from the first use to the last
      if (rows_ > kTeachers || !gathered_) {
        for (int64_t j = 0; j < count; ++j) gather(teacher_, first + j, dims_, row_[0], others_[j]);
      }
      gathered_ = true;
      body(first, count);
    }
  }

  int64_t rows_;
  Matrix student_, teacher_;
  Dims dims_;
  const T* weight_;
  T factor_;
  bool gathered_ = false;
  Scratch<T> row_, own_, others_, products_;
};

bool in_range(Dims dims, int64_t d) {
  return std::all_of(dims.at, dims.at + dims.count, [&](int64_t k) { return 0 <= k && k < d; });
}

template <class Body>
void for_blocks(int64_t begin, int64_t end, int64_t cost_per_row, int threads, Body&& body) {
  const int64_t blocks = (end - begin + kRows - 1) / kRows;
  parallel_rows(blocks, kRows * cost_per_row, threads, [&](int64_t from, int64_t to) {
    body([&](auto&& one) {
      for (int64_t b = from; b < to; ++b) one(begin + b * kRows, std::min(end, begin + (b + 1) * kRows));
    });
  });
}

}  // namespace

bool duc_loss(int64_t rows, Matrix student, Matrix teacher, intptr_t dims, int64_t count, Matrix weight, int64_t begin, int64_t end,
              double temperature, Matrix loss, Matrix lse, int threads) {
  const Dims chosen{reinterpret_cast<const int64_t*>(dims), count};
  if (!in_range(chosen, student.width)) return false;
  dispatch(student.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = static_cast<const T*>(weight.data);
    T* sums = static_cast<T*>(lse.data);
    std::vector<T> own(end - begin);
    for_blocks(begin, end, rows * (count / 4 + 1), threads, [&](auto each) {
      Block<V> block(rows, student, teacher, chosen, w, temperature);
      each([&](int64_t from, int64_t to) {
        block.multiply(from, to);
        for (int64_t i = from; i < to; ++i) {
          sums[i - begin] = block.log_sum_exp(i - from);
          own[i - begin] = block.products(i - from)[i];
        }
      });
    });
    double total = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (w[i] != 0) total += double(w[i]) * (double(sums[i - begin]) - double(own[i - begin]));
    }
    *static_cast<T*>(loss.data) = static_cast<T>(count ? total : 0);
  });
  return true;
}

void duc_loss_backward(int64_t rows, Matrix student, Matrix teacher, intptr_t dims, int64_t count, Matrix weight, int64_t begin,
                       int64_t end, double temperature, Matrix grad, Matrix lse, Matrix grad_student, int threads) {
  const Dims chosen{reinterpret_cast<const int64_t*>(dims), count};
  dispatch(student.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* w = static_cast<const T*>(weight.data);
    const T* sums = static_cast<const T*>(lse.data);
    const T scale = *static_cast<const T*>(grad.data);
    const int64_t d = student.width;
    for_blocks(begin, end, rows * (count / 2 + 1), threads, [&](auto each) {
      Block<V> block(rows, student, teacher, chosen, w, temperature);
      each([&](int64_t from, int64_t to) {
        block.multiply(from, to);
        for (int64_t i = from; i < to; ++i) {
          block.differentiate(i - from, i, w[i] != 0 ? sums[i - begin] : std::numeric_limits<T>::infinity(), scale);
        }
        block.mix(to - from);
        for (int64_t i = from; i < to; ++i) {
          T* goal = target(grad_student, i, block.row());
          std::fill_n(goal, d, T(0));
          for (int64_t k = 0; k < count; ++k) goal[chosen.at[k]] += block.own(i - from)[k];
          finish(grad_student, i, goal);
        }
      });
    });
  });
}

}  // namespace pgm_fast::cpu
