// Which calls the compiled kernels take. Python decides (pgm_fast/backends/selection.py), once per op and dtype, and
// says so here; a call that they do not take goes to Python's dispatch, which selects or refuses as if this extension
// were not there.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <string>
#include <vector>

namespace pgm_fast::host {

class Op {
 public:
  explicit Op(const char* name);
  virtual ~Op() = default;
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  // Every op of the extension, as its file names it (registration.h).
  static const std::vector<Op*>& all();
  static void serve(const std::string& name, at::ScalarType dtype);
  static void set_python(const std::string& name, const py::object& dispatch, const py::object& reference);
  static void forget();
  // name -> digest of the schema that this was built for, empty where the sources had none.
  static std::map<std::string, std::string> schemas();

  const std::string& name() const { return name_; }

  // Puts its kernel behind torch's dispatcher, and its derivative, if it has one.
  virtual void implement(torch::Library& cpu, torch::Library& autograd) const = 0;
  // Hands its kernel to Python's own dispatch, if that calls it.
  virtual void bind(py::module_& m) const = 0;

  // Whether the kernels take arguments of these dtypes: those of the first one are served, and no other needs a
  // conversion from or to double.
  template <class... Others>
  bool serves(const at::Tensor& first, const Others&... others) const {
    const auto dtype = first.scalar_type();
    return (served_.load(std::memory_order_relaxed) >> static_cast<int>(dtype) & 1) != 0 &&
           (mixes(dtype, others) && ...);
  }

  template <class Result, class... Arguments>
  Result in_python(const Arguments&... arguments) const {
    return call<Result>(dispatch_, arguments...);
  }

  // By the plain formula, made of torch's own operators.
  template <class Result, class... Arguments>
  Result plainly(const Arguments&... arguments) const {
    return call<Result>(reference_, arguments...);
  }

 private:
  static Op* named(const std::string& name);

  static bool mixes(at::ScalarType first, const at::Tensor& other) {
    const auto dtype = other.scalar_type();
    return dtype == first || !at::isFloatingType(dtype) ||
           (first != at::kDouble && (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf));
  }
  static bool mixes(at::ScalarType first, const std::optional<at::Tensor>& other) {
    return !other || mixes(first, *other);
  }
  static bool mixes(at::ScalarType first, at::TensorList others) {
    return std::all_of(others.begin(), others.end(), [&](const at::Tensor& x) { return mixes(first, x); });
  }
  template <class Other>
  static bool mixes(at::ScalarType, const Other&) {
    return true;
  }

  template <class Result, class... Arguments>
  Result call(PyObject* function, const Arguments&... arguments) const {
    TORCH_CHECK(function != nullptr, "pgm_fast::", name_, " is called before pgm_fast.ops is imported");
    py::gil_scoped_acquire gil;
    return py::reinterpret_borrow<py::object>(function)(for_python(arguments)...).template cast<Result>();
  }
  static std::vector<at::Tensor> for_python(at::TensorList x) { return x.vec(); }
  template <class Other>
  static const Other& for_python(const Other& x) {
    return x;
  }

  std::string name_;
  std::atomic<uint64_t> served_{0};  // one bit per dtype
  PyObject* dispatch_ = nullptr;     // these live as long as the process
  PyObject* reference_ = nullptr;
};

}  // namespace pgm_fast::host
