// Entry points of the CPU kernels: contiguous matrices, no checks. Formulas of the partitions in common/partition.h.
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

// Here a matrix's width is the distance between its rows, all rows hold d numbers, a null matrix is one that is not there (no prior; no
// sample, with a null seed). kl and grad_kl are [rows, layers], float, or double for double.
void gaussian_sample_kl(int64_t rows, int64_t d, int64_t layers, Matrix mu, Matrix logvar, Matrix prior_mu, Matrix prior_logvar,
                        uintptr_t seed, Matrix z, uintptr_t kl, int threads);
void gaussian_sample_kl_backward(int64_t rows, int64_t d, int64_t layers, uintptr_t grad_kl, Matrix grad_z, Matrix mu, Matrix logvar,
                                 Matrix prior_mu, Matrix prior_logvar, uintptr_t seed, Matrix grad_mu, Matrix grad_logvar,
                                 Matrix grad_prior_mu, Matrix grad_prior_logvar, int threads);

}  // namespace pgm_fast::cpu
