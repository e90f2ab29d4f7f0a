// Which calls the compiled kernels take. Python decides (pgm_fast/backends.py), once per op and dtype, and says so here; a call that
// they do not take goes to Python's dispatch, which selects or refuses as if this extension were not there.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <map>
#include <string>

namespace pgm_fast::host {

class Op {
 public:
  explicit Op(const char* name);

  // Whether the kernels take tensors of these dtypes: those of the first one are served, and no other needs a conversion from or to double.
  template <class... Others>
  bool serves(const at::Tensor& first, const Others&... others) const {
    const auto dtype = first.scalar_type();
    return (served_.load(std::memory_order_relaxed) >> static_cast<int>(dtype) & 1) != 0 && (mixes(dtype, others) && ...);
  }

  template <class Result, class... Arguments>
  Result in_python(const Arguments&... arguments) const {
    TORCH_CHECK(dispatch_ != nullptr, "pgm_fast::", name_, " is called before pgm_fast.ops is imported");
    py::gil_scoped_acquire gil;
    return py::reinterpret_borrow<py::object>(dispatch_)(arguments...).template cast<Result>();
  }

  // By name; false and nothing where there is no such op.
  static bool serve(const std::string& name, at::ScalarType dtype);
  static bool set_dispatch(const std::string& name, const py::object& dispatch);
  static void forget();
  // name -> digest of the schema that this was built for, empty where the sources had none.
  static std::map<std::string, std::string> schemas();

 private:
  static bool mixes(at::ScalarType first, const at::Tensor& other) {
    const auto dtype = other.scalar_type();
    return dtype == first || (first != at::kDouble && (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf));
  }
  static bool mixes(at::ScalarType first, const std::optional<at::Tensor>& other) { return !other || mixes(first, *other); }

  std::string name_;
  std::atomic<uint64_t> served_{0};  // one bit per dtype
  PyObject* dispatch_ = nullptr;     // lives as long as the process
};

}  // namespace pgm_fast::host
