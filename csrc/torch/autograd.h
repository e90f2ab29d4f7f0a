// What the derivatives of the ops have in common.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

namespace pgm_fast::host {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Whether an argument of an op asks for a gradient.
inline bool requires_grad(const Tensor& x) { return x.requires_grad(); }
inline bool requires_grad(const MaybeTensor& x) { return x && x->requires_grad(); }
inline bool requires_grad(at::TensorList all) {
  return std::any_of(all.begin(), all.end(), [](const Tensor& x) { return x.requires_grad(); });
}
template <class Other>
bool requires_grad(const Other&) {
  return false;
}

// Whether an argument of an op carries a derivative of forward mode.
inline bool has_tangent(const Tensor& x) { return x.defined() && x._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const MaybeTensor& x) { return x && has_tangent(*x); }
inline bool has_tangent(at::TensorList all) {
  return std::any_of(all.begin(), all.end(), [](const Tensor& x) { return has_tangent(x); });
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

// What forward kept for backward, by as many names.
template <size_t count>
std::array<Tensor, count> unpack(AutogradContext* ctx) {
  auto all = ctx->get_saved_variables();
  TORCH_CHECK(all.size() == count, "pgm_fast saved ", all.size(), " tensors for a backward pass that reads ", count);
  std::array<Tensor, count> found;
  std::move(all.begin(), all.end(), found.begin());
  return found;
}

// Ops with a share do without gradients of zeros where an output is not used: the share's is left out, those of the
// parts are made here.
inline Tensor or_zeros(const Tensor& grad, const Tensor& h) { return grad.defined() ? grad : at::zeros_like(h); }
inline MaybeTensor or_none(const Tensor& x) { return x.defined() ? MaybeTensor(x) : std::nullopt; }

}  // namespace pgm_fast::host
