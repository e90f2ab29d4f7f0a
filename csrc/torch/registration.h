// How the file of an op hands its functions over: one way for all of them. It names them at its end,
//
//   Registered<info_nce, InfoNce, Bound> op("info_nce");
//   Registered<info_nce_backward, NoDerivative, Bound> backward_op("info_nce_backward");
//
// and the rest is here: what the dispatcher calls, what autograd calls, what is called from another op's derivative.
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include "autograd.h"
#include "serving.h"

namespace pgm_fast::host {

// The op whose kernel is this function; it takes the arguments of the op's schema.
template <auto kernel>
struct OpOf;

template <class Result, class... Arguments, Result (*kernel)(Arguments...)>
struct OpOf<kernel> {
  static inline const Op* op = nullptr;

  // What the dispatcher calls for tensors of the CPU: the kernel, where it serves these. As Python selects, the first
  // argument decides.
  static Result on_cpu(Arguments... arguments) {
    return op->serves(arguments...) ? kernel(arguments...) : op->template in_python<Result>(arguments...);
  }

  // As the dispatcher has it, whatever serves it. Schemas are defined by the time of the first call.
  static Result call(Arguments... arguments) {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow(("pgm_fast::" + op->name()).c_str(), "")
                                   .template typed<Result(Arguments...)>();
    return handle.call(arguments...);
  }
};

// What autograd calls for it: `Derivative`, of reverse mode, where a gradient is asked for; the plain formula where a
// tensor carries a derivative of forward mode, since its operators know both.
template <auto kernel, class Derivative>
struct Derived;

template <class Result, class... Arguments, Result (*kernel)(Arguments...), class Derivative>
struct Derived<kernel, Derivative> {
  static Result call(Arguments... arguments) {
    if ((has_tangent(arguments) || ...)) return OpOf<kernel>::op->template plainly<Result>(arguments...);
    if (!at::GradMode::is_enabled() || !(requires_grad(arguments) || ...)) {
      const at::AutoDispatchBelowADInplaceOrView below;
      return OpOf<kernel>::call(arguments...);
    }
    const torch::autograd::variable_list made = Derivative::apply(arguments...);
    if constexpr (std::is_same_v<Result, Tensor>) {
      return made[0];
    } else {
      return as_tuple(made, std::make_index_sequence<std::tuple_size_v<Result>>());
    }
  }

 private:
  template <size_t... k>
  static Result as_tuple(const torch::autograd::variable_list& made, std::index_sequence<k...>) {
    return {made[k]...};
  }
};

// An op that computes gradients keeps Python's derivative, which refuses: it is reached only where a second derivative
// is recorded.
struct NoDerivative {};

// Whether Python's own dispatch calls the kernel, too, once it has chosen it.
enum class Binding { none, python };
inline constexpr Binding Bound = Binding::python;

template <auto kernel, class Derivative = NoDerivative, Binding binding = Binding::none>
class Registered final : public Op {
 public:
  explicit Registered(const char* name) : Op(name) { OpOf<kernel>::op = this; }

  void implement(torch::Library& cpu, torch::Library& autograd) const override {
    cpu.impl(name().c_str(), TORCH_FN(OpOf<kernel>::on_cpu));
    if constexpr (!std::is_same_v<Derivative, NoDerivative>) {
      using derived = Derived<kernel, Derivative>;
      autograd.impl(name().c_str(), TORCH_FN(derived::call));
    }
  }

  void bind(py::module_& m) const override {
    if constexpr (binding == Binding::python) {
      m.def(name().c_str(), kernel, py::call_guard<py::gil_scoped_release>());
    }
  }
};

}  // namespace pgm_fast::host
