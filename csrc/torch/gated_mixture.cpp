// gated_mixture: the CPU kernel behind the dispatcher, and its derivative. Formulas in pgm_fast/ops/gated_mixture.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

uintptr_t address(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()); }

std::vector<cpu::Matrix> matrices(const std::vector<Tensor>& all, int64_t rows) {
  std::vector<cpu::Matrix> result;
  result.reserve(all.size());
  for (const Tensor& x : all) result.push_back(input(x, rows));
  return result;
}

std::vector<Tensor> contiguous(at::TensorList all) {
  std::vector<Tensor> result;
  result.reserve(all.size());
  for (const Tensor& x : all) result.push_back(x.contiguous());
  return result;
}

Three gated_mixture(const Tensor& gate_, at::TensorList logits_, const MaybeTensor& labels_) {
  const Tensor gate = gate_.contiguous(), labels = labels_ ? labels_->contiguous() : Tensor();
  const auto logits = contiguous(logits_);
  const int64_t rows = gate.size(0), scored = static_cast<int64_t>(logits.size());
  const auto mixed = input(gate, rows);
  const auto read = matrices(logits, rows);
  const auto options = logits[0].options().dtype(accumulation(logits[0]));
  Three result(at::empty_like(logits[0]), at::empty(gate.sizes(), options),
               labels.defined() ? at::empty({rows, 1 + scored}, options) : at::empty({0}, options));
  const auto& [fused, weights, losses] = result;
  cpu::gated_mixture(rows, mixed, read, labels.defined() ? address(labels) : 0, output(fused, rows), address(weights),
                     address(losses), at::get_num_threads());
  return result;
}

Two gated_mixture_backward(const Tensor& grad_fused_, const Tensor& grad_weights_, const Tensor& grad_losses_,
                           const Tensor& gate_, at::TensorList logits_, const MaybeTensor& labels_) {
  const Tensor gate = gate_.contiguous(), labels = labels_ ? labels_->contiguous() : Tensor();
  const Tensor grad_fused = grad_fused_.contiguous(), grad_weights = grad_weights_.contiguous(),
               grad_losses = grad_losses_.contiguous();
  const auto logits = contiguous(logits_);
  const int64_t rows = gate.size(0), scored = static_cast<int64_t>(logits.size()), classes = logits[0].size(1);
  Two result(at::empty_like(gate), at::empty({scored, rows, classes}, logits[0].options()));
  const auto& [grad_gate, grad_logits] = result;
  std::vector<cpu::Matrix> written;
  written.reserve(scored);
  char* const begin = static_cast<char*>(grad_logits.mutable_data_ptr());
  const int64_t bytes = rows * classes * grad_logits.element_size();
  for (int64_t k = 0; k < scored; ++k) written.push_back({begin + k * bytes, dtype_of(grad_logits), classes});
  cpu::gated_mixture_backward(rows, input(grad_fused, rows), address(grad_weights), address(grad_losses),
                              input(gate, rows), matrices(logits, rows), labels.defined() ? address(labels) : 0,
                              output(grad_gate, rows), written, at::get_num_threads());
  return result;
}

struct GatedMixture : torch::autograd::Function<GatedMixture> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& gate, at::TensorList logits,
                               const MaybeTensor& labels) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [fused, weights, losses] = OpOf<gated_mixture>::call(gate, logits, labels);
    variable_list saved{gate, labels.value_or(Tensor())};
    saved.insert(saved.end(), logits.begin(), logits.end());
    ctx->save_for_backward(std::move(saved));
    return {fused, weights, losses};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const Tensor &gate = saved[0], &labels = saved[1];
    const auto logits = at::TensorList(saved).slice(2);
    auto [grad_gate, grad_logits] =
        OpOf<gated_mixture_backward>::call(grads[0], grads[1], grads[2], gate, logits, or_none(labels));
    variable_list result{grad_gate};
    for (const Tensor& grad : grad_logits.unbind(0)) result.push_back(grad);
    result.emplace_back();
    return result;
  }
};

Registered<gated_mixture, GatedMixture> op("gated_mixture");
Registered<gated_mixture_backward> backward_op("gated_mixture_backward");

}  // namespace
}  // namespace pgm_fast::host
