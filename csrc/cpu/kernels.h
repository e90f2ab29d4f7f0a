// Entry points of the CPU kernels: contiguous matrices, no checks. Formulas in common/. Includes nothing that depends
// on the instruction set: callers are compiled for the baseline.
#pragma once

#include <vector>

#include "../common/matrix.h"
#include "../common/multi_rate.h"

namespace pgm_fast::cpu {

using pgm_fast::Dtype;
using pgm_fast::Matrix;

// share: [rows, 2], of the dual gate [rows, 4], float, or double for double. grad_share, of any type, may be null.
void partition(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, int threads);
void partition_with_share(int64_t rows, Matrix h, Matrix z, double temperature, Matrix uni, Matrix paired, Matrix share,
                          int threads);
void partition_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h, Matrix z,
                        double temperature, Matrix grad_h, Matrix grad_z, int threads);

void partition_dual(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix uni_only,
                    Matrix paired_only, Matrix shared, int threads);
void partition_dual_with_share(int64_t rows, Matrix h, Matrix z_uni, Matrix z_paired, double temperature,
                               Matrix uni_only, Matrix paired_only, Matrix shared, Matrix share, int threads);
void partition_dual_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_shared, Matrix grad_share,
                             Matrix h, Matrix z_uni, Matrix z_paired, double temperature, Matrix grad_h,
                             Matrix grad_z_uni, Matrix grad_z_paired, int threads);

// One boundary per row. detach_gates says nothing to a forward pass: it is one of the op's numbers.
void partition_boundary(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor,
                        bool detach_gates, Matrix uni, Matrix paired, int threads);
void partition_boundary_with_share(int64_t rows, Matrix h, Matrix b_uni, Matrix b_paired, double width, double floor,
                                   bool detach_gates, Matrix uni, Matrix paired, Matrix share, int threads);
void partition_boundary_backward(int64_t rows, Matrix grad_uni, Matrix grad_paired, Matrix grad_share, Matrix h,
                                 Matrix b_uni, Matrix b_paired, double width, double floor, bool detach_gates,
                                 Matrix grad_h, Matrix grad_b_uni, Matrix grad_b_paired, int threads);

// products holds <student, teacher> and is multiplied by factor; weight and lse are of its dtype.
void duc_log_sum_exp(int64_t rows, Matrix products, const void* weight, int64_t first, double factor, void* lse,
                     double* losses, int threads);
// products becomes what each teacher weighs in the rows' gradients; scaled: factor is in it already.
void duc_teacher_weights(int64_t rows, Matrix products, const void* weight, int64_t first, double factor,
                         const void* lse, bool scaled, int threads);
// Rows from `first` on of grad: by_dim * factor on dims, 0 elsewhere.
void duc_scatter(int64_t rows, Matrix by_dim, const int64_t* dims, double factor, Matrix grad, int64_t first);

// unit, in the dtype of the computation: the rows of x over their norms, which are written (a row shorter than 1e-12
// over that).
void info_nce_normalize(int64_t rows, Matrix x, void* norms, Matrix unit, int threads);
// products [n, n] holds <a, b> and is multiplied by factor; weight, rows and columns, log-sum-exps, are of its dtype;
// losses of pairs.
void info_nce_log_sum_exps(int64_t n, Matrix products, const void* weight, double factor, void* rows, void* columns,
                           double* losses, int threads);
// products holds <a, b> and becomes its gradient, for twice the loss, times scale / factor.
void info_nce_gradient(int64_t n, Matrix products, const void* weight, double factor, const void* rows,
                       const void* columns, double scale, int threads);
// grad, of x in its dtype, from that of unit.
void info_nce_normalize_backward(int64_t rows, Matrix grad_unit, Matrix unit, const void* norms, Matrix grad,
                                 int threads);

// Here a matrix's width is the distance between its rows, all rows hold d numbers, a null matrix is one that is not
// there (no prior; no sample, with a null seed). kl and grad_kl have rows of as many numbers as there are layers,
// float, or double for double.
void gaussian_sample_kl(int64_t rows, int64_t d, int64_t layers, Matrix mu, Matrix logvar, Matrix prior_mu,
                        Matrix prior_logvar, uintptr_t seed, Matrix z, uintptr_t kl, int threads);
void gaussian_sample_kl_backward(int64_t rows, int64_t d, int64_t layers, Matrix grad_kl, Matrix grad_z, Matrix mu,
                                 Matrix logvar, Matrix prior_mu, Matrix prior_logvar, uintptr_t seed, Matrix grad_mu,
                                 Matrix grad_logvar, Matrix grad_prior_mu, Matrix grad_prior_logvar, int threads);

// weights [rows, mixed], losses and grad_losses [rows, 1 + logits], grad_weights as weights: float, or double for
// double. labels int64 [rows] or null, then there are no losses.
void gated_mixture(int64_t rows, Matrix gate, const std::vector<Matrix>& logits, uintptr_t labels, Matrix fused,
                   uintptr_t weights, uintptr_t losses, int threads);
void gated_mixture_backward(int64_t rows, Matrix grad_fused, uintptr_t grad_weights, uintptr_t grad_losses, Matrix gate,
                            const std::vector<Matrix>& logits, uintptr_t labels, Matrix grad_gate,
                            const std::vector<Matrix>& grad_logits, int threads);

// The next three run in one thread, on operands that are all float or all double.
// x += bias, row by row.
void add_bias(int64_t rows, Matrix x, Matrix bias);
// x += bias, hidden = keep * gelu(x); keep may be null.
void gelu(int64_t rows, Matrix x, Matrix bias, Matrix keep, Matrix hidden);
// grad_hidden is read before hidden is written anew, so that both may be one matrix.
void gelu_backward(int64_t rows, Matrix grad_hidden, Matrix x, Matrix keep, Matrix grad_x, Matrix hidden);

// decoded holds the products and becomes decoded + bias (bias.data may be null); loss[row] is the row's weighted mean
// squared error. row_weight is of the computation's type, null for 1 / rows.
void reconstruction_loss(int64_t rows, Matrix decoded, Matrix bias, Matrix target, const void* row_weight, double* loss,
                         int threads);
// grad = grad_decoded + d loss / d decoded, grad_target = d loss / d target (not written where its data is null).
void reconstruction_gradient(int64_t rows, Matrix grad_decoded, Matrix decoded, Matrix target, const void* row_weight,
                             double grad_loss, Matrix grad, Matrix grad_target, int threads);

// partials: one number per chunk, scratch. sums: those of Launch::sums, written; the launch's own are not read.
void multi_rate_squares(const multi_rate::Launch& launch, double* partials, double* sums, int threads);
void multi_rate_step(const multi_rate::Launch& launch, int threads);

}  // namespace pgm_fast::cpu
