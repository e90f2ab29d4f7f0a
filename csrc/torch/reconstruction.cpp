// reconstruction: torch's matrix products with bias, residual and loss in one pass behind them, and its derivative.
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"
#include "serving.h"

namespace pgm_fast::host {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Op forward_op("reconstruction"), backward_op("reconstruction_backward");

// [rows] in the type of the computation, undefined for the mean
Tensor weights(const MaybeTensor& row_weight, int64_t rows, at::ScalarType dtype) {
  if (!row_weight) return {};
  TORCH_CHECK(row_weight->numel() == rows, "reconstruction takes one weight per row, got ", row_weight->sizes(),
              " for ", rows, " rows");
  return row_weight->to(dtype).contiguous();
}
const void* data_of(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

Two forward(const Tensor& u, const Tensor& p, const Tensor& w_uni, const Tensor& w_paired, const MaybeTensor& bias,
            const Tensor& target_, const MaybeTensor& row_weight) {
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

Six backward(const Tensor& grad_decoded_, const Tensor& grad_loss, const Tensor& u, const Tensor& p,
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

Two forward_cpu(const Tensor& u, const Tensor& p, const Tensor& w_uni, const Tensor& w_paired, const MaybeTensor& bias,
                const Tensor& target, const MaybeTensor& row_weight) {
  if (!forward_op.serves(u, p, w_uni, w_paired, bias, target, row_weight)) {
    return forward_op.in_python<Two>(u, p, w_uni, w_paired, bias, target, row_weight);
  }
  return forward(u, p, w_uni, w_paired, bias, target, row_weight);
}

Six backward_cpu(const Tensor& grad_decoded, const Tensor& grad_loss, const Tensor& u, const Tensor& p,
                 const Tensor& w_uni, const Tensor& w_paired, const Tensor& decoded, const Tensor& target,
                 const MaybeTensor& row_weight, bool target_grad) {
  if (!backward_op.serves(grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight)) {
    return backward_op.in_python<Six>(grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight,
                                      target_grad);
  }
  return backward(grad_decoded, grad_loss, u, p, w_uni, w_paired, decoded, target, row_weight, target_grad);
}

const auto& dispatched() {
  static const auto op = typed_op<decltype(forward_cpu)>("pgm_fast::reconstruction");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward_cpu)>("pgm_fast::reconstruction_backward");
  return op;
}

struct Reconstruction : torch::autograd::Function<Reconstruction> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& u, const Tensor& p, const Tensor& w_uni,
                               const Tensor& w_paired, const MaybeTensor& bias, const Tensor& target,
                               const MaybeTensor& row_weight) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [decoded, loss] = dispatched().call(u, p, w_uni, w_paired, bias, target, row_weight);
    ctx->save_for_backward({u, p, w_uni, w_paired, decoded, target, row_weight ? *row_weight : Tensor()});
    ctx->saved_data["has_bias"] = bias.has_value();
    return {decoded, loss};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const MaybeTensor row_weight = saved[6].defined() ? MaybeTensor(saved[6]) : MaybeTensor();
    const bool has_bias = ctx->saved_data["has_bias"].toBool();
    const bool target_grad = ctx->needs_input_grad(has_bias ? 5 : 4);  // counts the tensors that were given
    auto [grad_u, grad_p, grad_w_uni, grad_w_paired, grad_bias, grad_target] = dispatched_backward().call(
        grads[0], grads[1], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], row_weight, target_grad);
    return {grad_u,
            grad_p,
            grad_w_uni,
            grad_w_paired,
            has_bias ? grad_bias : Tensor(),
            target_grad ? grad_target : Tensor(),
            Tensor()};
  }
};

Two forward_autograd(const Tensor& u, const Tensor& p, const Tensor& w_uni, const Tensor& w_paired,
                     const MaybeTensor& bias, const Tensor& target, const MaybeTensor& row_weight) {
  if (!recorded(u, p, w_uni, w_paired, bias, target)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(u, p, w_uni, w_paired, bias, target, row_weight);
  }
  const auto made = Reconstruction::apply(u, p, w_uni, w_paired, bias, target, row_weight);
  return {made[0], made[1]};
}

}  // namespace

void bind_reconstruction(py::module_& m) { bind_op<forward, backward>(m, "reconstruction"); }

void implement_reconstruction(torch::Library& cpu, torch::Library& autograd) {
  implement_op<forward_cpu, backward_cpu, forward_autograd>(cpu, autograd, "reconstruction");
}

}  // namespace pgm_fast::host
