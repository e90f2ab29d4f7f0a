// partition, with and without its share: CPU kernels behind the dispatcher, and their derivative.
#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

Two partition(const Tensor& h_, const Tensor& z_, double temperature) {
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mz = input(z, rows);
  check_gates(mh, mz);
  Two made(at::empty_like(h), at::empty_like(h));
  cpu::partition(rows, mh, mz, temperature, output(std::get<0>(made), rows), output(std::get<1>(made), rows),
                 at::get_num_threads());
  return made;
}

Three partition_with_share(const Tensor& h_, const Tensor& z_, double temperature) {
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mz = input(z, rows);
  check_gates(mh, mz);
  Three made(at::empty_like(h), at::empty_like(h), empty_share(z, 2));
  const auto& [uni, paired, share] = made;
  cpu::partition_with_share(rows, mh, mz, temperature, output(uni, rows), output(paired, rows), output(share, rows),
                            at::get_num_threads());
  return made;
}

Two partition_backward(const Tensor& grad_uni_, const Tensor& grad_paired_, const MaybeTensor& grad_share_,
                       const Tensor& h_, const Tensor& z_, double temperature) {
  const Tensor grad_uni = grad_uni_.contiguous(), grad_paired = grad_paired_.contiguous();
  const MaybeTensor grad_share = contiguous(grad_share_);
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mu = input(grad_uni, rows), mp = input(grad_paired, rows), mh = input(h, rows), mz = input(z, rows);
  const auto ms = input_share(grad_share, rows, 2);
  check_same_width(mh, mu, mp);
  check_gates(mh, mz);
  Two made(at::empty_like(h), at::empty_like(z));
  cpu::partition_backward(rows, mu, mp, ms, mh, mz, temperature, output(std::get<0>(made), rows),
                          output(std::get<1>(made), rows), at::get_num_threads());
  return made;
}

template <bool kShare>
struct Partition : torch::autograd::Function<Partition<kShare>> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z, double temperature) {
    ctx->save_for_backward({h, z});
    ctx->saved_data["temperature"] = temperature;
    const at::AutoDispatchBelowADInplaceOrView below;
    if constexpr (kShare) {
      ctx->set_materialize_grads(false);
      auto [uni, paired, share] = OpOf<partition_with_share>::call(h, z, temperature);
      return {uni, paired, share};
    } else {
      auto [uni, paired] = OpOf<partition>::call(h, z, temperature);
      return {uni, paired};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [h, z] = unpack<2>(ctx);
    const BelowAutogradUnlessRecorded below;
    auto [grad_h, grad_z] = OpOf<partition_backward>::call(or_zeros(grads[0], h), or_zeros(grads[1], h),
                                                           kShare ? or_none(grads[2]) : MaybeTensor(), h, z,
                                                           ctx->saved_data["temperature"].toDouble());
    return {grad_h, grad_z, Tensor()};
  }
};

Registered<partition, Partition<false>> op("partition");
Registered<partition_with_share, Partition<true>> share_op("partition_with_share");
Registered<partition_backward> backward_op("partition_backward");

}  // namespace
}  // namespace pgm_fast::host
