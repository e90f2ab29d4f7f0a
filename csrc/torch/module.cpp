// The host path: ops that reach the compiled CPU kernels, and autograd, without a Python frame. Built against one
// version of torch, whose name it carries, and loaded under that version only (pgm_fast/backends/host.py). Schemas,
// fakes and everything that is not served here are defined in pgm_fast/ops.
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "../cpu/instruction_set.h"
#include "serving.h"

namespace pgm_fast::host {

void bind_multi_rate(py::module_& m);

namespace {

void implement() {
  // a library takes its kernels with it when it goes
  static torch::Library cpu(torch::Library::IMPL, "pgm_fast", c10::DispatchKey::CPU, __FILE__, __LINE__);
  static torch::Library autograd(torch::Library::IMPL, "pgm_fast", c10::DispatchKey::AutogradCPU, __FILE__, __LINE__);
  for (const Op* op : Op::all()) op->implement(cpu, autograd);
}

}  // namespace
}  // namespace pgm_fast::host

PYBIND11_MODULE(PGM_FAST_HOST_NAME, m) {
  using namespace pgm_fast::host;
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
  m.attr("schemas") = Op::schemas();
  m.def("implement", &implement,
        "Puts the kernels behind the ops of these schemas; once, after Python has defined them.");
  m.def("serve", &Op::serve, "The kernels take calls of this op whose first tensor has this dtype, until forget().");
  m.def("forget", &Op::forget);
  m.def("set_python", &Op::set_python,
        "What computes the calls of this op that the kernels do not take, and its plain formula.");
  for (const Op* op : Op::all()) op->bind(m);
  bind_multi_rate(m);
}
