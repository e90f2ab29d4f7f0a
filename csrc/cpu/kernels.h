// Entry points of the CPU kernels: contiguous matrices, no checks. Formulas in common/partition.h.
#pragma once

#include "matrix.h"

namespace pgm_fast::cpu {

void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads);
void partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix h, Matrix z, double temperature, Matrix grad_h,
                        Matrix grad_z, int threads);

void partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only, Matrix paired_only,
                    Matrix shared, int threads);
void partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix h, Matrix z_uni,
                             Matrix z_paired, double temperature, Matrix grad_h, Matrix grad_z_uni, Matrix grad_z_paired, int threads);

}  // namespace pgm_fast::cpu
