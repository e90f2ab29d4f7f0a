// info_nce: torch's matrix products, the kernels of csrc/cpu/info_nce.cpp around them, and the derivative. Formulas in
// pgm_fast/ops/info_nce.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "serving.h"

namespace pgm_fast::host {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

Op forward_op("info_nce"), backward_op("info_nce_backward");

// A view's rows as they are multiplied: in the accumulation dtype, of unit length if asked for.
struct Rows {
  Rows(const Tensor& view, bool normalize) : x(view.contiguous()), normalized(normalize) {
    if (!normalize) {
      unit = x.to(accumulation(x));
      return;
    }
    const int64_t rows = x.size(0);
    unit = at::empty(x.sizes(), x.options().dtype(accumulation(x)));
    norms = at::empty({rows}, unit.options());
    cpu::info_nce_normalize(rows, input(x, rows), norms.mutable_data_ptr(), output(unit, rows), at::get_num_threads());
  }

  // The gradient of the view from that of its rows.
  Tensor backward(const Tensor& grad_unit) const {
    if (!normalized) return grad_unit.to(x.scalar_type());
    const int64_t rows = x.size(0);
    const Tensor grad = at::empty(x.sizes(), x.options());
    cpu::info_nce_normalize_backward(rows, input(grad_unit, rows), input(unit, rows), norms.const_data_ptr(), output(grad, rows),
                                     at::get_num_threads());
    return grad;
  }

  Tensor x, unit, norms;
  bool normalized;
};

// Not at::mm, which an autocast region would lower.
Tensor product(const Tensor& a, const Tensor& b) {
  Tensor result = at::empty({a.size(0), b.size(1)}, a.options());
  at::mm_out(result, a, b);
  return result;
}

Three forward(const Tensor& a, const Tensor& b, const MaybeTensor& weight, double temperature, bool normalize) {
  const int64_t n = a.size(0);
  const auto options = a.options().dtype(accumulation(a));
  Tensor loss = at::zeros({}, options), rows = at::empty({n}, options), columns = at::empty({n}, options);
  if (n == 0) return {loss, rows, columns};
  const Tensor w = weights_or_mean(weight, a), products = product(Rows(a, normalize).unit, Rows(b, normalize).unit.t());
  std::vector<double> losses(n);
  cpu::info_nce_log_sum_exps(n, output(products, n), w.const_data_ptr(), 1.0 / temperature, rows.mutable_data_ptr(),
                             columns.mutable_data_ptr(), losses.data(), at::get_num_threads());
  loss.fill_(std::accumulate(losses.begin(), losses.end(), 0.0));
  return {loss, rows, columns};
}

Two backward(const Tensor& grad, const Tensor& a, const Tensor& b, const MaybeTensor& weight, const Tensor& rows, const Tensor& columns,
             double temperature, bool normalize) {
  const int64_t n = a.size(0);
  if (n == 0) return {at::zeros(a.sizes(), a.options()), at::zeros(b.sizes(), b.options())};
  const Rows first(a, normalize), second(b, normalize);
  const Tensor w = weights_or_mean(weight, a), products = product(first.unit, second.unit.t());
  cpu::info_nce_gradient(n, output(products, n), w.const_data_ptr(), 1.0 / temperature, rows.const_data_ptr(), columns.const_data_ptr(),
                         0.5 * grad.item<double>() / temperature, at::get_num_threads());
  return {first.backward(product(products, second.unit)), second.backward(product(products.t(), first.unit))};
}

Three forward_cpu(const Tensor& a, const Tensor& b, const MaybeTensor& weight, double temperature, bool normalize) {
  if (!forward_op.serves(a, b, weight)) return forward_op.in_python<Three>(a, b, weight, temperature, normalize);
  return forward(a, b, weight, temperature, normalize);
}

Two backward_cpu(const Tensor& grad, const Tensor& a, const Tensor& b, const MaybeTensor& weight, const Tensor& rows,
                 const Tensor& columns, double temperature, bool normalize) {
  // of the first argument, as Python chooses: for 16-bit views that is a float
  if (!backward_op.serves(grad, a, b, weight)) {
    return backward_op.in_python<Two>(grad, a, b, weight, rows, columns, temperature, normalize);
  }
  return backward(grad, a, b, weight, rows, columns, temperature, normalize);
}

const auto& dispatched() {
  static const auto op = typed_op<decltype(forward_cpu)>("pgm_fast::info_nce");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward_cpu)>("pgm_fast::info_nce_backward");
  return op;
}

struct InfoNce : torch::autograd::Function<InfoNce> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, const MaybeTensor& weight, double temperature,
                               bool normalize) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, rows, columns] = dispatched().call(a, b, weight, temperature, normalize);
    ctx->save_for_backward({a, b, weight ? *weight : Tensor(), rows, columns});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["normalize"] = normalize;
    return {loss, rows, columns};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const MaybeTensor weight = saved[2].defined() ? MaybeTensor(saved[2]) : MaybeTensor();
    auto [by_a, by_b] = dispatched_backward().call(grads[0], saved[0], saved[1], weight, saved[3], saved[4],
                                                   ctx->saved_data["temperature"].toDouble(), ctx->saved_data["normalize"].toBool());
    variable_list result(5);
    result[0] = by_a;
    result[1] = by_b;
    return result;
  }
};

Three forward_autograd(const Tensor& a, const Tensor& b, const MaybeTensor& weight, double temperature, bool normalize) {
  if (!recorded(a, b)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(a, b, weight, temperature, normalize);
  }
  const auto made = InfoNce::apply(a, b, weight, temperature, normalize);
  return {made[0], made[1], made[2]};
}

}  // namespace

void bind_info_nce(py::module_& m) {
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("info_nce", &forward, without_gil);
  m.def("info_nce_backward", &backward, without_gil);
}

void implement_info_nce(torch::Library& cpu, torch::Library& autograd) {
  cpu.impl("info_nce", TORCH_FN(forward_cpu));
  cpu.impl("info_nce_backward", TORCH_FN(backward_cpu));
  autograd.impl("info_nce", TORCH_FN(forward_autograd));
}

}  // namespace pgm_fast::host
