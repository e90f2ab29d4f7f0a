// How the file of an op hands its functions over: one way for all of them.
#pragma once

#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <string>

namespace pgm_fast::host {

// For Python's own dispatch, which has already chosen them.
template <auto forward, auto backward>
void bind_op(py::module_& m, const std::string& name) {
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def(name.c_str(), forward, without_gil);
  m.def((name + "_backward").c_str(), backward, without_gil);
}

// Behind torch's dispatcher. The backward op keeps Python's derivative, which refuses: it is reached only where a second derivative is
// recorded.
template <auto forward, auto backward, auto recorded_forward>
void implement_op(torch::Library& cpu, torch::Library& autograd, const std::string& name) {
  cpu.impl(name.c_str(), TORCH_FN(forward));
  cpu.impl((name + "_backward").c_str(), TORCH_FN(backward));
  autograd.impl(name.c_str(), TORCH_FN(recorded_forward));
}

}  // namespace pgm_fast::host
