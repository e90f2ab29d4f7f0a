// How the file of an op hands its functions over: one way for all of them.
#pragma once

#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "autograd.h"
#include "serving.h"

namespace pgm_fast::host {

// For Python's own dispatch, which has already chosen them.
template <auto forward, auto backward>
void bind_op(py::module_& m, const std::string& name) {
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def(name.c_str(), forward, without_gil);
  m.def((name + "_backward").c_str(), backward, without_gil);
}

// What autograd calls for an op: `recorded_forward`, whose derivative is of reverse mode, except where a tensor carries
// one of forward mode. Then the plain formula is called, whose operators know both.
template <auto recorded_forward>
struct Derived;

template <class Result, class... Arguments, Result (*recorded_forward)(Arguments...)>
struct Derived<recorded_forward> {
  static inline const Op* op = nullptr;

  static Result call(Arguments... arguments) {
    if ((has_tangent(arguments) || ...)) return op->plainly<Result>(for_python(arguments)...);
    return recorded_forward(arguments...);
  }

 private:
  static std::vector<at::Tensor> for_python(at::TensorList x) { return x.vec(); }
  template <class Other>
  static const Other& for_python(const Other& x) {
    return x;
  }
};

template <auto recorded_forward>
void implement_autograd(torch::Library& autograd, const std::string& name) {
  Derived<recorded_forward>::op = Op::named(name);
  autograd.impl(name.c_str(), TORCH_FN(Derived<recorded_forward>::call));
}

// Behind torch's dispatcher. The backward op keeps Python's derivative, which refuses: it is reached only where a
// second derivative is recorded.
template <auto forward, auto backward, auto recorded_forward>
void implement_op(torch::Library& cpu, torch::Library& autograd, const std::string& name) {
  cpu.impl(name.c_str(), TORCH_FN(forward));
  cpu.impl((name + "_backward").c_str(), TORCH_FN(backward));
  implement_autograd<recorded_forward>(autograd, name);
}

}  // namespace pgm_fast::host
