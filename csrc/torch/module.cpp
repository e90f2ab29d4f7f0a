// The host path: ops that reach the compiled CPU kernels, and autograd, without a Python frame. Built against one
// version of torch, whose name it carries, and loaded under that version only (pgm_fast/host.py).
#include <torch/csrc/utils/pybind.h>

#include "../cpu/instruction_set.h"

namespace pgm_fast::host {

void bind_ops(py::module_& m);
void bind_multi_rate(py::module_& m);

}  // namespace pgm_fast::host

PYBIND11_MODULE(PGM_FAST_HOST_NAME, m) {
  m.doc() = "Host path of pgm_fast for one version of torch: call pgm_fast.ops instead.";
  const std::string built_for = PGM_FAST_INSTRUCTION_SET;
  if (!pgm_fast::cpu::cpu_has(built_for)) {
    throw py::import_error("was built for " + built_for +
                           ", which this CPU lacks; install pgm_fast again on this machine");
  }
#ifdef _OPENMP
  m.attr("parallel") = true;
#else
  m.attr("parallel") = false;  // at::parallel_for is a plain loop then
#endif
  pgm_fast::host::bind_ops(m);
  pgm_fast::host::bind_multi_rate(m);
}
