// Entry points of the CUDA kernels: contiguous matrices on the current device, launched on `stream`, no checks.
// Formulas in common/.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/matrix.h"
#include "../common/multi_rate.h"

namespace pgm_fast::cuda {

// share: [rows, 2], of dual gates [rows, 4], float, or double for double. grad_share, of any type, may be null.
cudaError_t partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired,
                      cudaStream_t stream);
cudaError_t partition_with_share(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired,
                                 Matrix share, cudaStream_t stream);
cudaError_t partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z,
                               double temperature, Matrix grad_h, Matrix grad_z, cudaStream_t stream);

cudaError_t partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                           Matrix paired_only, Matrix shared, cudaStream_t stream);
cudaError_t partition_dual_with_share(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                                      Matrix uni_only, Matrix paired_only, Matrix shared, Matrix share,
                                      cudaStream_t stream);
cudaError_t partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared,
                                    Matrix grad_share, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                                    Matrix grad_h, Matrix grad_z_uni, Matrix grad_z_paired, cudaStream_t stream);

// b_uni, b_paired and their gradients: [rows, 1], of any type but double beside another. detach_gates is backward's.
cudaError_t partition_boundary(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor,
                               bool detach_gates, Matrix uni, Matrix paired, cudaStream_t stream);
cudaError_t partition_boundary_with_share(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width,
                                          double floor, bool detach_gates, Matrix uni, Matrix paired, Matrix share,
                                          cudaStream_t stream);
cudaError_t partition_boundary_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h,
                                        Matrix b_uni, Matrix b_paired, double width, double floor, bool detach_gates,
                                        Matrix grad_h, Matrix grad_b_uni, Matrix grad_b_paired, cudaStream_t stream);

// partials: one number per chunk, scratch. sums: those of Launch::sums, written; the launch's own are not read.
cudaError_t multi_rate_squares(const multi_rate::Launch& launch, double* partials, double* sums, cudaStream_t stream);
// finished: a word of device memory that is 0, and 0 again afterwards; launches that may overlap need one each.
cudaError_t multi_rate_step(const multi_rate::Launch& launch, unsigned* finished, cudaStream_t stream);

}  // namespace pgm_fast::cuda
