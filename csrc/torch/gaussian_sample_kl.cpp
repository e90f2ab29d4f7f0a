// gaussian_sample_kl: the CPU kernel behind the dispatcher, and its derivative. Formulas in
// pgm_fast/ops/gaussian_sample_kl.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

// Rows as the kernel reads them: whole, but they may lie apart (halves of a wider matrix), except where they are
// converted.
class Rows {
 public:
  explicit Rows(const MaybeTensor& x) {
    if (!x) return;
    const bool whole = x->stride(-1) == 1 && x->stride(0) >= x->size(1) && x->element_size() >= 4;
    held_ = whole ? *x : x->contiguous();
  }

  cpu::Matrix matrix(const Tensor& like) const {
    if (!held_.defined()) return {nullptr, dtype_of(like), 0};
    TORCH_CHECK(held_.sizes() == like.sizes(), "pgm_fast's kernels take operands of one shape here");
    // the stride of a dimension of size 1 means nothing
    return {const_cast<void*>(held_.const_data_ptr()), dtype_of(held_),
            held_.size(0) > 1 ? held_.stride(0) : held_.size(1)};
  }

 private:
  Tensor held_;
};

cpu::Matrix made(const Tensor& x, const Tensor& like) {
  if (x.numel() == 0) return {nullptr, dtype_of(like), 0};
  return {x.mutable_data_ptr(), dtype_of(x), x.size(1)};
}

uintptr_t address(const MaybeTensor& seed) { return seed ? reinterpret_cast<uintptr_t>(seed->const_data_ptr()) : 0; }

Tensor empty_or_none(const Tensor& like, bool wanted) {
  return wanted ? at::empty(like.sizes(), like.options()) : at::empty({0}, like.options());
}

Two gaussian_sample_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                       const MaybeTensor& prior_logvar, const MaybeTensor& seed, int64_t layers) {
  const int64_t rows = mu.size(0), d = mu.size(1);
  const Rows m(mu), l(logvar), pm(prior_mu), pl(prior_logvar);
  Two result(empty_or_none(mu, seed.has_value()), at::empty({rows, layers}, mu.options().dtype(accumulation(mu))));
  const auto& [z, kl] = result;
  cpu::gaussian_sample_kl(rows, d, layers, m.matrix(mu), l.matrix(mu), pm.matrix(mu), pl.matrix(mu), address(seed),
                          made(z, mu), reinterpret_cast<uintptr_t>(kl.mutable_data_ptr()), at::get_num_threads());
  return result;
}

Four gaussian_sample_kl_backward(const Tensor& grad_z, const Tensor& grad_kl_, const Tensor& mu, const Tensor& logvar,
                                 const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                                 const MaybeTensor& seed) {
  const int64_t rows = mu.size(0), d = mu.size(1), layers = grad_kl_.size(1);
  const Rows gz(seed ? MaybeTensor(grad_z) : std::nullopt), m(mu), l(logvar), pm(prior_mu), pl(prior_logvar);
  const Tensor grad_kl = layers > 1 && grad_kl_.stride(1) != 1 ? grad_kl_.contiguous() : grad_kl_;
  const cpu::Matrix by_kl{const_cast<void*>(grad_kl.const_data_ptr()), dtype_of(grad_kl),
                          rows > 1 ? grad_kl.stride(0) : layers};
  const bool given = prior_mu.has_value();
  Four result(empty_or_none(mu, true), empty_or_none(mu, true), empty_or_none(mu, given), empty_or_none(mu, given));
  const auto& [grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar] = result;
  cpu::gaussian_sample_kl_backward(rows, d, layers, by_kl, gz.matrix(mu), m.matrix(mu), l.matrix(mu), pm.matrix(mu),
                                   pl.matrix(mu), address(seed), made(grad_mu, mu), made(grad_logvar, mu),
                                   made(grad_prior_mu, mu), made(grad_prior_logvar, mu), at::get_num_threads());
  return result;
}

struct GaussianSampleKl : torch::autograd::Function<GaussianSampleKl> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar, const MaybeTensor& seed,
                               int64_t layers) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [z, kl] = OpOf<gaussian_sample_kl>::call(mu, logvar, prior_mu, prior_logvar, seed, layers);
    ctx->save_for_backward(
        {mu, logvar, prior_mu.value_or(Tensor()), prior_logvar.value_or(Tensor()), seed.value_or(Tensor())});
    ctx->saved_data["layers"] = layers;
    ctx->set_materialize_grads(false);
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [mu, logvar, prior_mu, prior_logvar, seed] = unpack<5>(ctx);
    const BelowAutogradUnlessRecorded below;
    // without a sample nothing reads its gradient
    Tensor grad_z = grads[0];
    if (!grad_z.defined()) grad_z = seed.defined() ? at::zeros(mu.sizes(), mu.options()) : at::empty({0}, mu.options());
    Tensor grad_kl = grads[1];
    if (!grad_kl.defined()) {
      grad_kl = at::zeros({mu.size(0), ctx->saved_data["layers"].toInt()}, mu.options().dtype(accumulation(mu)));
    }
    auto [grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar] = OpOf<gaussian_sample_kl_backward>::call(
        grad_z, grad_kl, mu, logvar, or_none(prior_mu), or_none(prior_logvar), or_none(seed));
    if (!prior_mu.defined()) return {grad_mu, grad_logvar, Tensor(), Tensor(), Tensor(), Tensor()};
    return {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, Tensor(), Tensor()};
  }
};

Registered<gaussian_sample_kl, GaussianSampleKl> op("gaussian_sample_kl");
Registered<gaussian_sample_kl_backward> backward_op("gaussian_sample_kl_backward");

}  // namespace
}  // namespace pgm_fast::host
