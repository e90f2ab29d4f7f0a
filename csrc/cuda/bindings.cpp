// Thin: hands addresses to kernels, on the device and stream that it is told. Checks nothing but CUDA's own errors,
// decides nothing. Loading it touches no device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../matrix_caster.h"
#include "kernels.h"

namespace py = pybind11;
namespace cuda = pgm_fast::cuda;
using pgm_fast::Matrix;
using pgm_fast::multi_rate::Launch;

namespace {

// The device cannot start a kernel: nothing has run, and another backend may.
struct CannotStart : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string message =
      std::string("CUDA kernel of pgm_fast: ") + cudaGetErrorName(error) + ", " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    message += "; built for " PGM_FAST_CUDA_ARCHITECTURES
               ": set TORCH_CUDA_ARCH_LIST to this device's compute capability and install pgm_fast again";
    throw CannotStart(message);
  }
  if (error == cudaErrorInvalidConfiguration || error == cudaErrorLaunchOutOfResources) throw CannotStart(message);
  throw std::runtime_error(message);
}

// The device of the tensors, where it is not the current one, until the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    changed_ = device != before_;
    if (changed_) check(cudaSetDevice(device));
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

// launch(arguments...) as a function of Python that takes the device and the stream's address after them.
template <class... Arguments, class Kernel>
auto on_stream(Kernel launch) {
  return [launch](Arguments... arguments, int device, uintptr_t stream) {
    const OnDevice scope(device);
    check(launch(arguments..., reinterpret_cast<cudaStream_t>(stream)));
  };
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of pgm_fast. Addresses in, nothing checked: call pgm_fast.ops instead.";
  m.attr("architectures") = PGM_FAST_CUDA_ARCHITECTURES;
  py::register_exception<CannotStart>(m, "CannotStart", PyExc_RuntimeError);
  m.def("partition", on_stream<int64_t, Matrix, Matrix, double, Matrix, Matrix>(&cuda::partition));
  m.def("partition_with_share",
        on_stream<int64_t, Matrix, Matrix, double, Matrix, Matrix, Matrix>(&cuda::partition_with_share));
  m.def("partition_backward",
        on_stream<int64_t, Matrix, Matrix, Matrix, Matrix, Matrix, double, Matrix, Matrix>(&cuda::partition_backward));
  m.def("partition_dual",
        on_stream<int64_t, Matrix, Matrix, Matrix, double, Matrix, Matrix, Matrix>(&cuda::partition_dual));
  m.def("partition_dual_with_share", on_stream<int64_t, Matrix, Matrix, Matrix, double, Matrix, Matrix, Matrix, Matrix>(
                                         &cuda::partition_dual_with_share));
  m.def("partition_dual_backward",
        on_stream<int64_t, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, double, Matrix, Matrix, Matrix>(
            &cuda::partition_dual_backward));
  m.def("partition_boundary",
        on_stream<int64_t, Matrix, Matrix, Matrix, double, double, bool, Matrix, Matrix>(&cuda::partition_boundary));
  m.def("partition_boundary_with_share",
        on_stream<int64_t, Matrix, Matrix, Matrix, double, double, bool, Matrix, Matrix, Matrix>(
            &cuda::partition_boundary_with_share));
  m.def(
      "partition_boundary_backward",
      on_stream<int64_t, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, double, double, bool, Matrix, Matrix, Matrix>(
          &cuda::partition_boundary_backward));
  // a launch is the address of its words
  m.def("multi_rate_squares", [](uintptr_t launch, uintptr_t partials, uintptr_t sums, int device, uintptr_t stream) {
    const OnDevice scope(device);
    check(cuda::multi_rate_squares(*reinterpret_cast<const Launch*>(launch), reinterpret_cast<double*>(partials),
                                   reinterpret_cast<double*>(sums), reinterpret_cast<cudaStream_t>(stream)));
  });
  m.def("multi_rate_step", [](uintptr_t launch, uintptr_t finished, int device, uintptr_t stream) {
    const OnDevice scope(device);
    check(cuda::multi_rate_step(*reinterpret_cast<const Launch*>(launch), reinterpret_cast<unsigned*>(finished),
                                reinterpret_cast<cudaStream_t>(stream)));
  });
}
