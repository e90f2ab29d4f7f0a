// info_nce: torch's matrix products, the kernels of csrc/cpu/info_nce.cpp around them, and the derivative. Formulas in
// pgm_fast/ops/info_nce.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

// The views [P, n, d] of P losses, as they are multiplied: in the accumulation dtype, rows of unit length if asked for.
struct Views {
  Views(const Tensor& views, bool normalize) : x(views.contiguous()), normalized(normalize) {
    if (!normalize) {
      unit = x.to(accumulation(x));
      return;
    }
    const int64_t rows = rows_of(x);
    unit = at::empty(x.sizes(), x.options().dtype(accumulation(x)));
    norms = at::empty({rows}, unit.options());
    cpu::info_nce_normalize(rows, input(x, rows), norms.mutable_data_ptr(), output(unit, rows), at::get_num_threads());
  }

  // The gradient of the views from that of their rows as they are multiplied.
  Tensor backward(const Tensor& grad_unit) const {
    if (!normalized) return grad_unit.to(x.scalar_type());
    const int64_t rows = rows_of(x);
    const Tensor grad = at::empty(x.sizes(), x.options());
    cpu::info_nce_normalize_backward(rows, input(grad_unit, rows), input(unit, rows), norms.const_data_ptr(),
                                     output(grad, rows), at::get_num_threads());
    return grad;
  }

  Tensor x, unit, norms;
  bool normalized;
};

Tensor stacked(const Tensor& x, bool alone) { return alone ? x.unsqueeze(0) : x; }
Tensor unstacked(const Tensor& x, bool alone) { return alone ? x.squeeze(0) : x; }

// [P, n] in the accumulation dtype; none are those of a mean.
Tensor weights(const MaybeTensor& weight, const Tensor& views, bool alone) {
  if (weight) return stacked(*weight, alone).to(accumulation(views)).contiguous();
  return at::full({views.size(0), views.size(1)}, 1.0 / views.size(1), views.options().dtype(accumulation(views)));
}

// at::mm_out, because an autocast region would lower at::mm.
Three info_nce(const Tensor& a, const Tensor& b, const MaybeTensor& weight, double temperature, bool normalize) {
  const bool alone = a.dim() == 2;
  const int64_t n = a.size(-2), losses = alone ? 1 : a.size(0);
  const auto options = a.options().dtype(accumulation(a));
  Tensor loss = at::zeros({losses}, options), rows = at::empty({losses, n}, options),
         columns = at::empty({losses, n}, options);
  if (n > 0 && losses > 0) {
    const Views first(stacked(a, alone), normalize), second(stacked(b, alone), normalize);
    const Tensor w = weights(weight, first.x, alone);
    Tensor products = at::empty({n, n}, options);
    std::vector<double> per_pair(n);
    for (int64_t p = 0; p < losses; ++p) {
      at::mm_out(products, first.unit.select(0, p), second.unit.select(0, p).t());
      cpu::info_nce_log_sum_exps(n, output(products, n), w.select(0, p).const_data_ptr(), 1.0 / temperature,
                                 rows.select(0, p).mutable_data_ptr(), columns.select(0, p).mutable_data_ptr(),
                                 per_pair.data(), at::get_num_threads());
      loss.select(0, p).fill_(std::accumulate(per_pair.begin(), per_pair.end(), 0.0));
    }
  }
  return {unstacked(loss, alone), unstacked(rows, alone), unstacked(columns, alone)};
}

Two info_nce_backward(const Tensor& grad, const Tensor& a, const Tensor& b, const MaybeTensor& weight,
                      const Tensor& rows, const Tensor& columns, double temperature, bool normalize) {
  const bool alone = a.dim() == 2;
  const int64_t n = a.size(-2), losses = alone ? 1 : a.size(0);
  if (n == 0 || losses == 0) return {at::zeros(a.sizes(), a.options()), at::zeros(b.sizes(), b.options())};
  const Views first(stacked(a, alone), normalize), second(stacked(b, alone), normalize);
  const Tensor w = weights(weight, first.x, alone), slopes = stacked(grad, alone).to(at::kDouble).contiguous();
  const Tensor of_rows = stacked(rows, alone).contiguous(), of_columns = stacked(columns, alone).contiguous();
  Tensor products = at::empty({n, n}, first.unit.options());
  const Tensor by_first = at::empty(first.unit.sizes(), first.unit.options()), by_second = at::empty_like(by_first);
  for (int64_t p = 0; p < losses; ++p) {
    at::mm_out(products, first.unit.select(0, p), second.unit.select(0, p).t());
    cpu::info_nce_gradient(n, output(products, n), w.select(0, p).const_data_ptr(), 1.0 / temperature,
                           of_rows.select(0, p).const_data_ptr(), of_columns.select(0, p).const_data_ptr(),
                           0.5 * slopes.const_data_ptr<double>()[p] / temperature, at::get_num_threads());
    Tensor to_first = by_first.select(0, p), to_second = by_second.select(0, p);
    at::mm_out(to_first, products, second.unit.select(0, p));
    at::mm_out(to_second, products.t(), first.unit.select(0, p));
  }
  return {unstacked(first.backward(by_first), alone), unstacked(second.backward(by_second), alone)};
}

struct InfoNce : torch::autograd::Function<InfoNce> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, const MaybeTensor& weight,
                               double temperature, bool normalize) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, rows, columns] = OpOf<info_nce>::call(a, b, weight, temperature, normalize);
    ctx->save_for_backward({a, b, weight.value_or(Tensor()), rows, columns});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["normalize"] = normalize;
    return {loss, rows, columns};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [a, b, weight, rows, columns] = unpack<5>(ctx);
    const BelowAutogradUnlessRecorded below;
    auto [by_a, by_b] =
        OpOf<info_nce_backward>::call(grads[0], a, b, or_none(weight), rows, columns,
                                      ctx->saved_data["temperature"].toDouble(), ctx->saved_data["normalize"].toBool());
    return {by_a, by_b, Tensor(), Tensor(), Tensor()};
  }
};

Registered<info_nce, InfoNce, Bound> op("info_nce");
Registered<info_nce_backward, NoDerivative, Bound> backward_op("info_nce_backward");

}  // namespace
}  // namespace pgm_fast::host
