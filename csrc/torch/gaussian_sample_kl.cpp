// gaussian_sample_kl: the CPU kernel behind the dispatcher, and its derivative. Formulas in
// pgm_fast/ops/gaussian_sample_kl.py.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "autograd.h"
#include "operands.h"
#include "registration.h"
#include "serving.h"

namespace pgm_fast::host {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Op forward_op("gaussian_sample_kl"), backward_op("gaussian_sample_kl_backward");

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

Two forward_cpu(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                const MaybeTensor& seed, int64_t layers) {
  if (!forward_op.serves(mu, logvar, prior_mu, prior_logvar)) {
    return forward_op.in_python<Two>(mu, logvar, prior_mu, prior_logvar, seed, layers);
  }
  const int64_t rows = mu.size(0), d = mu.size(1);
  const Rows m(mu), l(logvar), pm(prior_mu), pl(prior_logvar);
  const auto accumulation = mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  Two result(empty_or_none(mu, seed.has_value()), at::empty({rows, layers}, mu.options().dtype(accumulation)));
  const auto& [z, kl] = result;
  cpu::gaussian_sample_kl(rows, d, layers, m.matrix(mu), l.matrix(mu), pm.matrix(mu), pl.matrix(mu), address(seed),
                          made(z, mu), reinterpret_cast<uintptr_t>(kl.mutable_data_ptr()), at::get_num_threads());
  return result;
}

Four backward_cpu(const Tensor& grad_z, const Tensor& grad_kl_, const Tensor& mu, const Tensor& logvar,
                  const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar, const MaybeTensor& seed) {
  if (!backward_op.serves(grad_z, grad_kl_, mu, logvar, prior_mu, prior_logvar)) {
    return backward_op.in_python<Four>(grad_z, grad_kl_, mu, logvar, prior_mu, prior_logvar, seed);
  }
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

const auto& dispatched() {
  static const auto op = typed_op<decltype(forward_cpu)>("pgm_fast::gaussian_sample_kl");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward_cpu)>("pgm_fast::gaussian_sample_kl_backward");
  return op;
}

struct GaussianSampleKl : torch::autograd::Function<GaussianSampleKl> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& logvar,
                               const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar, const MaybeTensor& seed,
                               int64_t layers) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [z, kl] = dispatched().call(mu, logvar, prior_mu, prior_logvar, seed, layers);
    ctx->save_for_backward(
        {mu, logvar, prior_mu.value_or(Tensor()), prior_logvar.value_or(Tensor()), seed.value_or(Tensor())});
    ctx->saved_data["layers"] = layers;
    ctx->set_materialize_grads(false);
    return {z, kl};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const auto maybe = [](const Tensor& x) { return x.defined() ? MaybeTensor(x) : MaybeTensor(); };
    const Tensor& mu = saved[0];
    const MaybeTensor prior_mu = maybe(saved[2]), seed = maybe(saved[4]);
    // without a sample nothing reads its gradient
    Tensor grad_z = grads[0];
    if (!grad_z.defined()) grad_z = seed ? at::zeros(mu.sizes(), mu.options()) : at::empty({0}, mu.options());
    Tensor grad_kl = grads[1];
    if (!grad_kl.defined()) {
      const auto accumulation = mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
      grad_kl = at::zeros({mu.size(0), ctx->saved_data["layers"].toInt()}, mu.options().dtype(accumulation));
    }
    auto [grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar] =
        dispatched_backward().call(grad_z, grad_kl, mu, saved[1], prior_mu, maybe(saved[3]), seed);
    if (!prior_mu) return {grad_mu, grad_logvar, Tensor(), Tensor(), Tensor(), Tensor()};
    return {grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar, Tensor(), Tensor()};
  }
};

Two forward_autograd(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                     const MaybeTensor& prior_logvar, const MaybeTensor& seed, int64_t layers) {
  if (!recorded(mu, logvar, prior_mu, prior_logvar)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(mu, logvar, prior_mu, prior_logvar, seed, layers);
  }
  const auto result = GaussianSampleKl::apply(mu, logvar, prior_mu, prior_logvar, seed, layers);
  return {result[0], result[1]};
}

}  // namespace

void implement_gaussian_sample_kl(torch::Library& cpu, torch::Library& autograd) {
  implement_op<forward_cpu, backward_cpu, forward_autograd>(cpu, autograd, "gaussian_sample_kl");
}

}  // namespace pgm_fast::host
