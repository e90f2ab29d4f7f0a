// partition_dual, with and without its share: CPU kernels behind the dispatcher, and their derivative.
#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

Three partition_dual(const Tensor& h_, const Tensor& z_uni_, const Tensor& z_paired_, double temperature) {
  const Tensor h = h_.contiguous(), z_uni = z_uni_.contiguous(), z_paired = z_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = input(z_uni, rows), mp = input(z_paired, rows);
  check_gates(mh, mu);
  check_same_width(mu, mp);
  Three made(at::empty_like(h), at::empty_like(h), at::empty_like(h));
  const auto& [uni_only, paired_only, shared] = made;
  cpu::partition_dual(rows, mh, mu, mp, temperature, output(uni_only, rows), output(paired_only, rows),
                      output(shared, rows), at::get_num_threads());
  return made;
}

Four partition_dual_with_share(const Tensor& h_, const Tensor& z_uni_, const Tensor& z_paired_, double temperature) {
  const Tensor h = h_.contiguous(), z_uni = z_uni_.contiguous(), z_paired = z_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = input(z_uni, rows), mp = input(z_paired, rows);
  check_gates(mh, mu);
  check_same_width(mu, mp);
  Four made(at::empty_like(h), at::empty_like(h), at::empty_like(h), empty_share(z_uni, 4));
  const auto& [uni_only, paired_only, shared, share] = made;
  cpu::partition_dual_with_share(rows, mh, mu, mp, temperature, output(uni_only, rows), output(paired_only, rows),
                                 output(shared, rows), output(share, rows), at::get_num_threads());
  return made;
}

Three partition_dual_backward(const Tensor& grad_uni_, const Tensor& grad_paired_, const Tensor& grad_shared_,
                              const MaybeTensor& grad_share_, const Tensor& h_, const Tensor& z_uni_,
                              const Tensor& z_paired_, double temperature) {
  const Tensor grad_uni = grad_uni_.contiguous(), grad_paired = grad_paired_.contiguous(),
               grad_shared = grad_shared_.contiguous();
  const MaybeTensor grad_share = contiguous(grad_share_);
  const Tensor h = h_.contiguous(), z_uni = z_uni_.contiguous(), z_paired = z_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto gu = input(grad_uni, rows), gp = input(grad_paired, rows), gs = input(grad_shared, rows);
  const auto by_share = input_share(grad_share, rows, 4);
  const auto mh = input(h, rows), mu = input(z_uni, rows), mp = input(z_paired, rows);
  check_same_width(mh, gu, gp, gs);
  check_gates(mh, mu);
  check_same_width(mu, mp);
  Three made(at::empty_like(h), at::empty_like(z_uni), at::empty_like(z_paired));
  const auto& [grad_h, grad_z_uni, grad_z_paired] = made;
  cpu::partition_dual_backward(rows, gu, gp, gs, by_share, mh, mu, mp, temperature, output(grad_h, rows),
                               output(grad_z_uni, rows), output(grad_z_paired, rows), at::get_num_threads());
  return made;
}

template <bool kShare>
struct PartitionDual : torch::autograd::Function<PartitionDual<kShare>> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z_uni, const Tensor& z_paired,
                               double temperature) {
    ctx->save_for_backward({h, z_uni, z_paired});
    ctx->saved_data["temperature"] = temperature;
    const at::AutoDispatchBelowADInplaceOrView below;
    if constexpr (kShare) {
      ctx->set_materialize_grads(false);
      auto [uni_only, paired_only, shared, share] =
          OpOf<partition_dual_with_share>::call(h, z_uni, z_paired, temperature);
      return {uni_only, paired_only, shared, share};
    } else {
      auto [uni_only, paired_only, shared] = OpOf<partition_dual>::call(h, z_uni, z_paired, temperature);
      return {uni_only, paired_only, shared};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [h, z_uni, z_paired] = unpack<3>(ctx);
    const BelowAutogradUnlessRecorded below;
    auto [grad_h, grad_z_uni, grad_z_paired] = OpOf<partition_dual_backward>::call(
        or_zeros(grads[0], h), or_zeros(grads[1], h), or_zeros(grads[2], h), kShare ? or_none(grads[3]) : MaybeTensor(),
        h, z_uni, z_paired, ctx->saved_data["temperature"].toDouble());
    return {grad_h, grad_z_uni, grad_z_paired, Tensor()};
  }
};

Registered<partition_dual, PartitionDual<false>> op("partition_dual");
Registered<partition_dual_with_share, PartitionDual<true>> share_op("partition_dual_with_share");
Registered<partition_dual_backward> backward_op("partition_dual_backward");

}  // namespace
}  // namespace pgm_fast::host
