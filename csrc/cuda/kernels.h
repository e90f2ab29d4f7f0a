// Entry points of the CUDA kernels: contiguous matrices on the current device, launched on `stream`, no checks. Formulas in
// common/partition.h.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/matrix.h"

namespace pgm_fast::cuda {

cudaError_t partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, cudaStream_t stream);
cudaError_t partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix h, Matrix z, double temperature,
                               Matrix grad_h, Matrix grad_z, cudaStream_t stream);

cudaError_t partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                           Matrix paired_only, Matrix shared, cudaStream_t stream);
cudaError_t partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix h, Matrix z_uni,
                                    Matrix z_paired, double temperature, Matrix grad_h, Matrix grad_z_uni, Matrix grad_z_paired,
                                    cudaStream_t stream);

}  // namespace pgm_fast::cuda
