// duc_loss: torch's matrix products of a block of students with the teachers, the kernels of csrc/cpu/duc_loss.cpp
// around them, and the derivative. Formulas in pgm_fast/ops/duc_loss.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

// Products held at once, and gathered features of teachers: 1 and 4 MiB in float. Fewer products per block make the
// matrix product slower, gathering teachers anew for every block costs more the smaller a block is.
constexpr int64_t kProducts = int64_t{1} << 18;
constexpr int64_t kGathered = int64_t{1} << 20;

Tensor numbers(const Tensor& dims) {
  return dims.scalar_type() == at::kBool ? at::nonzero(dims).squeeze(-1) : dims.contiguous();
}

// One direction: the rows [begin, end) of student against all of teacher, block by block.
class OneWay {
 public:
  OneWay(const Tensor& student, const Tensor& teacher, const Tensor& dims, const Tensor& weight, int64_t begin,
         int64_t end, double temperature)
      : student_(student),
        teacher_(teacher),
        dims_(dims),
        weight_(weight),
        begin_(begin),
        rows_(end - begin),
        all_(student.size(0)),
        count_(dims.size(0)),
        dtype_(accumulation(student)),
        factor_(1.0 / temperature),
        threads_(at::get_num_threads()) {
    block_ = std::clamp<int64_t>(kProducts / std::max<int64_t>(all_, 1), 16, std::max<int64_t>(rows_, 16));
    chunk_ = all_ * count_ <= kGathered ? std::max<int64_t>(all_, 1) : std::max<int64_t>(16, kGathered / (8 * count_));
  }

  // The loss, and what backward needs: the gradient on the dimensions for a loss of gradient 1, else the log-sum-exps.
  Two forward(bool keep_gradient) {
    const auto options = student_.options().dtype(dtype_);
    Tensor lse = at::empty({rows_}, options);
    Tensor kept = keep_gradient ? at::empty({rows_, count_}, options) : lse;
    Tensor loss = at::zeros({}, options);
    if (rows_ == 0) return {loss, kept};
    if (count_ == 0) {
      lse.zero_();
      return {loss, kept};
    }
    std::vector<double> losses(rows_);
    for_blocks([&](int64_t first, int64_t n, Tensor& products) {
      Tensor sums = lse.narrow(0, first, n);
      cpu::duc_log_sum_exp(n, output(products, n), weight_.const_data_ptr(), begin_ + first, factor_,
                           sums.mutable_data_ptr(), losses.data() + first, threads_);
      if (keep_gradient) gradient(first, n, products, sums, true, kept.narrow(0, first, n));
    });
    loss.fill_(std::accumulate(losses.begin(), losses.end(), 0.0));
    return {loss, kept};
  }

  Tensor backward(const Tensor& kept, double grad) {
    const bool whole = begin_ == 0 && rows_ == all_ && count_ > 0;
    Tensor result =
        whole ? at::empty(student_.sizes(), student_.options()) : at::zeros(student_.sizes(), student_.options());
    if (rows_ == 0 || count_ == 0) return result;
    const auto* dims = dims_.const_data_ptr<int64_t>();
    if (kept.dim() == 2) {
      cpu::duc_scatter(rows_, input(kept, rows_), dims, grad, output(result, all_), begin_);
      return result;
    }
    Tensor by_dim = at::empty({std::min(block_, rows_), count_}, kept.options());
    for_blocks([&](int64_t first, int64_t n, Tensor& products) {
      Tensor part = by_dim.narrow(0, 0, n);
      gradient(first, n, products, kept.narrow(0, first, n), false, part);
      cpu::duc_scatter(n, input(part, n), dims, grad, output(result, all_), begin_ + first);
    });
    return result;
  }

 private:
  // body(first, n, products[n, all]) for every block of rows, counted from begin.
  template <class Body>
  void for_blocks(Body&& body) {
    Tensor memory = at::empty({std::min(block_, rows_), all_}, student_.options().dtype(dtype_));
    for (int64_t first = 0; first < rows_; first += block_) {
      const int64_t n = std::min(block_, rows_ - first);
      Tensor products = memory.narrow(0, 0, n);
      const Tensor own = chosen(student_.narrow(0, begin_ + first, n));
      for_teachers([&](int64_t at, int64_t size, const Tensor& teachers) {
        Tensor columns = products.narrow(1, at, size);
        at::mm_out(columns, own, teachers.t());
      });
      body(first, n, products);
    }
  }

  template <class Body>
  void for_teachers(Body&& body) {
    if (chunk_ == all_) {
      if (!gathered_.defined()) gathered_ = chosen(teacher_);
      body(0, all_, gathered_);
      return;
    }
    for (int64_t at = 0; at < all_; at += chunk_) {
      const int64_t size = std::min(chunk_, all_ - at);
      body(at, size, chosen(teacher_.narrow(0, at, size)));
    }
  }

  void gradient(int64_t first, int64_t n, Tensor& products, const Tensor& lse, bool scaled, Tensor to) {
    cpu::duc_teacher_weights(n, output(products, n), weight_.const_data_ptr(), begin_ + first, factor_,
                             lse.const_data_ptr(), scaled, threads_);
    for_teachers([&](int64_t at, int64_t size, const Tensor& teachers) {
      if (at == 0) {
        at::mm_out(to, products.narrow(1, at, size), teachers);
      } else {
        to.addmm_(products.narrow(1, at, size), teachers);
      }
    });
  }

  Tensor chosen(const Tensor& x) const { return at::index_select(x, 1, dims_).to(dtype_); }

  Tensor student_, teacher_, dims_, weight_, gathered_;
  int64_t begin_, rows_, all_, count_, block_, chunk_;
  at::ScalarType dtype_;
  double factor_;
  int threads_;
};

int64_t end_of(int64_t end, const Tensor& student) { return end < 0 ? student.size(0) : end; }

// What was chosen by mask is kept by mask, so that its shape does not depend on values.
Tensor by_mask(const Tensor& kept, const Tensor& dims, const Tensor& chosen) {
  if (dims.scalar_type() != at::kBool || kept.dim() != 2) return kept;
  return at::zeros({kept.size(0), dims.size(0)}, kept.options()).index_copy_(1, chosen, kept);
}
Tensor by_number(const Tensor& kept, const Tensor& dims, const Tensor& chosen) {
  return dims.scalar_type() != at::kBool || kept.dim() != 2 ? kept : at::index_select(kept, 1, chosen);
}

Three duc_loss(const Tensor& student, const Tensor& teacher, const Tensor& dims, const MaybeTensor& reverse_dims,
               const MaybeTensor& weight, int64_t begin, int64_t end, double temperature, bool keep_gradient) {
  const Tensor w = weights_or_mean(weight, student), chosen = numbers(dims);
  end = end_of(end, student);
  auto [loss, kept] = OneWay(student, teacher, chosen, w, begin, end, temperature).forward(keep_gradient);
  kept = by_mask(kept, dims, chosen);
  if (!reverse_dims) return {loss, kept, at::empty({0}, kept.options())};
  const Tensor back_chosen = numbers(*reverse_dims);
  auto [back, back_kept] = OneWay(teacher, student, back_chosen, w, begin, end, temperature).forward(keep_gradient);
  return {loss.add_(back), kept, by_mask(back_kept, *reverse_dims, back_chosen)};
}

Two duc_loss_backward(const Tensor& grad, const Tensor& student, const Tensor& teacher, const Tensor& dims,
                      const MaybeTensor& reverse_dims, const MaybeTensor& weight, const Tensor& kept,
                      const Tensor& reverse_kept, int64_t begin, int64_t end, double temperature) {
  const Tensor w = weights_or_mean(weight, student), chosen = numbers(dims);
  const double scale = grad.item<double>();
  end = end_of(end, student);
  const Tensor by_student =
      OneWay(student, teacher, chosen, w, begin, end, temperature).backward(by_number(kept, dims, chosen), scale);
  if (!reverse_dims) return {by_student, at::empty({0}, student.options())};
  const Tensor back = numbers(*reverse_dims);
  return {by_student, OneWay(teacher, student, back, w, begin, end, temperature)
                          .backward(by_number(reverse_kept, *reverse_dims, back), scale)};
}

struct DucLoss : torch::autograd::Function<DucLoss> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& student, const Tensor& teacher, const Tensor& dims,
                               const MaybeTensor& reverse_dims, const MaybeTensor& weight, int64_t begin, int64_t end,
                               double temperature, bool keep_gradient) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, kept, reverse_kept] =
        OpOf<duc_loss>::call(student, teacher, dims, reverse_dims, weight, begin, end, temperature, keep_gradient);
    ctx->save_for_backward(
        {student, teacher, dims, reverse_dims.value_or(Tensor()), weight.value_or(Tensor()), kept, reverse_kept});
    ctx->saved_data["begin"] = begin;
    ctx->saved_data["end"] = end;
    ctx->saved_data["temperature"] = temperature;
    return {loss, kept, reverse_kept};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [student, teacher, dims, reverse_dims, weight, kept, reverse_kept] = unpack<7>(ctx);
    const BelowAutogradUnlessRecorded below;
    auto [by_student, by_teacher] = OpOf<duc_loss_backward>::call(
        grads[0], student, teacher, dims, or_none(reverse_dims), or_none(weight), kept, reverse_kept,
        ctx->saved_data["begin"].toInt(), ctx->saved_data["end"].toInt(), ctx->saved_data["temperature"].toDouble());
    variable_list result(9);
    result[0] = by_student;
    if (reverse_dims.defined()) result[1] = by_teacher;
    return result;
  }
};

Registered<duc_loss, DucLoss, Bound> op("duc_loss");
Registered<duc_loss_backward, NoDerivative, Bound> backward_op("duc_loss_backward");

}  // namespace
}  // namespace pgm_fast::host
