// Thin: hands addresses to kernels. Checks nothing but the CPU, decides nothing. Compiled for the baseline instruction
// set.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/instruction_set.h"
#include "cpu/kernels.h"
#include "matrix_caster.h"

namespace py = pybind11;
namespace cpu = pgm_fast::cpu;
using pgm_fast::multi_rate::Launch;

PYBIND11_MODULE(_native, m) {
  m.doc() = "CPU kernels of pgm_fast. Addresses in, nothing checked: call pgm_fast.ops instead.";
  const std::string built_for = PGM_FAST_INSTRUCTION_SET;
  if (!cpu::cpu_has(built_for)) {
    throw py::import_error("was built for " + built_for +
                           ", which this CPU lacks; install pgm_fast again on this machine");
  }
  m.attr("instruction_set") = built_for;
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("gated_mixture", &cpu::gated_mixture, without_gil);
  m.def("gated_mixture_backward", &cpu::gated_mixture_backward, without_gil);
  m.def("gaussian_sample_kl", &cpu::gaussian_sample_kl, without_gil);
  m.def("gaussian_sample_kl_backward", &cpu::gaussian_sample_kl_backward, without_gil);
  m.def("partition", &cpu::partition, without_gil);
  m.def("partition_with_share", &cpu::partition_with_share, without_gil);
  m.def("partition_backward", &cpu::partition_backward, without_gil);
  m.def("partition_dual", &cpu::partition_dual, without_gil);
  m.def("partition_dual_with_share", &cpu::partition_dual_with_share, without_gil);
  m.def("partition_dual_backward", &cpu::partition_dual_backward, without_gil);
  m.def("partition_boundary", &cpu::partition_boundary, without_gil);
  m.def("partition_boundary_with_share", &cpu::partition_boundary_with_share, without_gil);
  m.def("partition_boundary_backward", &cpu::partition_boundary_backward, without_gil);
  // a launch is the address of its words
  m.def(
      "multi_rate_squares",
      [](uintptr_t launch, uintptr_t partials, uintptr_t sums, int threads) {
        cpu::multi_rate_squares(*reinterpret_cast<const Launch*>(launch), reinterpret_cast<double*>(partials),
                                reinterpret_cast<double*>(sums), threads);
      },
      without_gil);
  m.def(
      "multi_rate_step",
      [](uintptr_t launch, int threads) { cpu::multi_rate_step(*reinterpret_cast<const Launch*>(launch), threads); },
      without_gil);
}
