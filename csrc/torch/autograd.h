// What the derivatives of the ops have in common.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

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

// In a backward pass: its ops go straight to their kernels, except where a second derivative is recorded, which they refuse.
class BelowAutogradUnlessRecorded {
 public:
  BelowAutogradUnlessRecorded() {
    if (!at::GradMode::is_enabled()) guard_.emplace();
  }

 private:
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard_;
};

}  // namespace pgm_fast::host
