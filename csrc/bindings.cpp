// Thin: hands addresses to kernels. Checks nothing but the CPU, decides nothing. Compiled for the baseline instruction set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/kernels.h"

namespace py = pybind11;
namespace cpu = pgm_fast::cpu;

// A matrix is the tuple (address, dtype, width) in Python.
template <>
struct pybind11::detail::type_caster<cpu::Matrix> {
  PYBIND11_TYPE_CASTER(cpu::Matrix, const_name("tuple[int, int, int]"));

  bool load(handle source, bool) {
    if (!PyTuple_Check(source.ptr()) || PyTuple_GET_SIZE(source.ptr()) != 3) return false;
    value.data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(source.ptr(), 0));
    value.dtype = static_cast<cpu::Dtype>(PyLong_AsLong(PyTuple_GET_ITEM(source.ptr(), 1)));
    value.width = PyLong_AsLongLong(PyTuple_GET_ITEM(source.ptr(), 2));
    return !PyErr_Occurred();
  }
};

namespace {

bool cpu_has(const std::string& instruction_set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (instruction_set == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
  }
  if (instruction_set == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return instruction_set == "scalar";
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of pgm_fast. Addresses in, nothing checked: call pgm_fast.ops instead.";
  const std::string built_for = PGM_FAST_INSTRUCTION_SET;
  if (!cpu_has(built_for)) {
    throw py::import_error("was built for " + built_for + ", which this CPU lacks; install pgm_fast again on this machine");
  }
  m.attr("instruction_set") = built_for;
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("gated_mixture", &cpu::gated_mixture, without_gil);
  m.def("gated_mixture_backward", &cpu::gated_mixture_backward, without_gil);
  m.def("gaussian_sample_kl", &cpu::gaussian_sample_kl, without_gil);
  m.def("gaussian_sample_kl_backward", &cpu::gaussian_sample_kl_backward, without_gil);
  m.def("partition", &cpu::partition, without_gil);
  m.def("partition_backward", &cpu::partition_backward, without_gil);
  m.def("partition_dual", &cpu::partition_dual, without_gil);
  m.def("partition_dual_backward", &cpu::partition_dual_backward, without_gil);
}
