// reconstruction: torch's matrix products with bias, residual and loss in one pass behind them, and its derivative.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

// [rows] in the type of the computation, undefined for the mean
Tensor weights(const MaybeTensor& row_weight, int64_t rows, at::ScalarType dtype) {
  if (!row_weight) return {};
  TORCH_CHECK(row_weight->numel() == rows, "reconstruction takes one weight per row, got ", row_weight->sizes(),
              " for ", rows, " rows");
  return row_weight->to(dtype).contiguous();
}
const void* data_of(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

Two reconstruction(const Tensor& u, const Tensor& p, const Tensor& w_uni, const Tensor& w_paired,
                   const MaybeTensor& bias, const Tensor& target_, const MaybeTensor& row_weight) {
  const Tensor target = target_.contiguous();
  const int64_t rows = u.size(0);
  Tensor decoded = at::mm(u, w_uni.t());
  decoded.addmm_(p, w_paired.t());
  const auto mx = output(decoded, rows), mt = input(target, rows);
  check_same_width(mx, mt);
  const Tensor b = bias ? bias->contiguous() : Tensor();
  const cpu::Matrix mb = b.defined() ? input(b, 1) : cpu::Matrix{nullptr, mx.dtype, mx.width};
  check_same_width(mx, mb);
  const Tensor weight = weights(row_weight, rows, accumulation(u));
  std::vector<double> by_row(rows);
  cpu::reconstruction_loss(rows, mx, mb, mt, data_of(weight), by_row.data(), at::get_num_threads());
  Tensor loss = at::empty({}, u.options().dtype(accumulation(u)));
  loss.fill_(std::accumulate(by_row.begin(), by_row.end(), 0.0));
  return {decoded, loss};
}

Six reconstruction_backward(const Tensor& grad_decoded_, const Tensor& grad_loss, const Tensor& u, const Tensor& p,
                            const Tensor& w_uni, const Tensor& w_paired, const Tensor& decoded_, const Tensor& target_,
                            const MaybeTensor& row_weight, bool target_grad) {
  const Tensor grad_decoded = grad_decoded_.contiguous(), decoded = decoded_.contiguous(),
               target = target_.contiguous();
  const int64_t rows = u.size(0);
  const Tensor weight = weights(row_weight, rows, accumulation(u));
  const Tensor grad = at::empty_like(decoded);
  const Tensor grad_target = target_grad ? at::empty_like(target) : at::empty({0}, target.options());
  const auto mx = input(decoded, rows), mg = input(grad_decoded, rows), mt = input(target, rows);
  check_same_width(mx, mg, mt);
  cpu::reconstruction_gradient(rows, mg, mx, mt, data_of(weight), grad_loss.item<double>(), output(grad, rows),
                               target_grad ? output(grad_target, rows) : cpu::Matrix{nullptr, mt.dtype, mt.width},
                               at::get_num_threads());
  const Tensor columns = grad.t();
  return {at::mm(grad, w_uni), at::mm(grad, w_paired), at::mm(columns, u), at::mm(columns, p), grad.sum(0),
          grad_target};
}

struct Reconstruction : torch::autograd::Function<Reconstruction> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& u, const Tensor& p, const Tensor& w_uni,
                               const Tensor& w_paired, const MaybeTensor& bias, const Tensor& target,
                               const MaybeTensor& row_weight) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [decoded, loss] = OpOf<reconstruction>::call(u, p, w_uni, w_paired, bias, target, row_weight);
    ctx->save_for_backward({u, p, w_uni, w_paired, decoded, target, row_weight.value_or(Tensor())});
    ctx->saved_data["has_bias"] = bias.has_value();
    return {decoded, loss};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [u, p, w_uni, w_paired, decoded, target, row_weight] = unpack<7>(ctx);
    const BelowAutogradUnlessRecorded below;
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    const bool target_grad = ctx->needs_input_grad(has_bias ? 5 : 4);  // counts the tensors that were given
    auto [grad_u, grad_p, grad_w_uni, grad_w_paired, grad_bias, grad_target] = OpOf<reconstruction_backward>::call(
        grads[0], grads[1], u, p, w_uni, w_paired, decoded, target, or_none(row_weight), target_grad);
    return {grad_u,
            grad_p,
            grad_w_uni,
            grad_w_paired,
            has_bias ? grad_bias : Tensor(),
            target_grad ? grad_target : Tensor(),
            Tensor()};
  }
};

Registered<reconstruction, Reconstruction, Bound> op("reconstruction");
Registered<reconstruction_backward, NoDerivative, Bound> backward_op("reconstruction_backward");

}  // namespace
}  // namespace pgm_fast::host
