// What the derivatives of the ops have in common.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>
#include <optional>

namespace pgm_fast::host {

template <class Kernel>
auto typed_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Kernel>();
}

inline bool requires_grad(const at::Tensor& x) { return x.requires_grad(); }
inline bool requires_grad(const std::optional<at::Tensor>& x) { return x && x->requires_grad(); }

// Whether autograd records a call on these tensors.
template <class... Tensors>
bool recorded(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Whether an argument of an op carries a derivative of forward mode.
inline bool has_tangent(const at::Tensor& x) { return x.defined() && x._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const std::optional<at::Tensor>& x) { return x && has_tangent(*x); }
inline bool has_tangent(at::TensorList all) {
  return std::any_of(all.begin(), all.end(), [](const at::Tensor& x) { return has_tangent(x); });
}
template <class Other>
bool has_tangent(const Other&) {
  return false;
}

// In a backward pass: its ops go straight to their kernels, except where a second derivative is recorded, which they
// refuse, or where gradients may have derivatives of forward mode.
class BelowAutogradUnlessRecorded {
 public:
  BelowAutogradUnlessRecorded() {
    if (!at::GradMode::is_enabled() && torch::autograd::ForwardADLevel::try_get_by_idx(0) == nullptr) guard_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard_;
};

// Ops with a share do without gradients of zeros where an output is not used: the share's is left out, those of the
// parts are made here.
inline at::Tensor or_zeros(const at::Tensor& grad, const at::Tensor& h) {
  return grad.defined() ? grad : at::zeros_like(h);
}
inline std::optional<at::Tensor> or_none(const at::Tensor& grad) {
  return grad.defined() ? std::optional<at::Tensor>(grad) : std::nullopt;
}

}  // namespace pgm_fast::host
