// partition_boundary, with and without its share: CPU kernels behind the dispatcher, and their derivative.

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

// A boundary per row.
cpu::Matrix boundaries(const Tensor& b, int64_t rows) {
  const auto found = input(b, rows);
  TORCH_CHECK(found.width == 1, "pgm_fast's kernels take one boundary per row here, got ", b.sizes());
  return found;
}

Two partition_boundary(const Tensor& h_, const Tensor& b_uni_, const Tensor& b_paired_, double width, double floor,
                       bool detach_gates) {
  const Tensor h = h_.contiguous(), b_uni = b_uni_.contiguous(), b_paired = b_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = boundaries(b_uni, rows), mp = boundaries(b_paired, rows);
  Two made(at::empty_like(h), at::empty_like(h));
  const auto& [uni, paired] = made;
  cpu::partition_boundary(rows, mh, mu, mp, width, floor, detach_gates, output(uni, rows), output(paired, rows),
                          at::get_num_threads());
  return made;
}

Three partition_boundary_with_share(const Tensor& h_, const Tensor& b_uni_, const Tensor& b_paired_, double width,
                                    double floor, bool detach_gates) {
  const Tensor h = h_.contiguous(), b_uni = b_uni_.contiguous(), b_paired = b_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = boundaries(b_uni, rows), mp = boundaries(b_paired, rows);
  Three made(at::empty_like(h), at::empty_like(h), empty_share(b_uni, 4));
  const auto& [uni, paired, share] = made;
  cpu::partition_boundary_with_share(rows, mh, mu, mp, width, floor, detach_gates, output(uni, rows),
                                     output(paired, rows), output(share, rows), at::get_num_threads());
  return made;
}

Three partition_boundary_backward(const Tensor& grad_uni_, const Tensor& grad_paired_, const MaybeTensor& grad_share_,
                                  const Tensor& h_, const Tensor& b_uni_, const Tensor& b_paired_, double width,
                                  double floor, bool detach_gates) {
  const Tensor grad_uni = grad_uni_.contiguous(), grad_paired = grad_paired_.contiguous();
  const MaybeTensor grad_share = contiguous(grad_share_);
  const Tensor h = h_.contiguous(), b_uni = b_uni_.contiguous(), b_paired = b_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto gu = input(grad_uni, rows), gp = input(grad_paired, rows), mh = input(h, rows);
  const auto mu = boundaries(b_uni, rows), mp = boundaries(b_paired, rows);
  check_same_width(mh, gu, gp);
  Three made(at::empty_like(h), at::empty_like(b_uni), at::empty_like(b_paired));
  const auto& [grad_h, grad_b_uni, grad_b_paired] = made;
  cpu::partition_boundary_backward(rows, gu, gp, input_share(grad_share, rows, 4), mh, mu, mp, width, floor,
                                   detach_gates, output(grad_h, rows), output(grad_b_uni, rows),
                                   output(grad_b_paired, rows), at::get_num_threads());
  return made;
}

template <bool kShare>
struct PartitionBoundary : torch::autograd::Function<PartitionBoundary<kShare>> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& b_uni, const Tensor& b_paired,
                               double width, double floor, bool detach_gates) {
    ctx->save_for_backward({h, b_uni, b_paired});
    ctx->saved_data["width"] = width;
    ctx->saved_data["floor"] = floor;
    ctx->saved_data["detach_gates"] = detach_gates;
    const at::AutoDispatchBelowADInplaceOrView below;
    if constexpr (kShare) {
      ctx->set_materialize_grads(false);
      auto [uni, paired, share] =
          OpOf<partition_boundary_with_share>::call(h, b_uni, b_paired, width, floor, detach_gates);
      return {uni, paired, share};
    } else {
      auto [uni, paired] = OpOf<partition_boundary>::call(h, b_uni, b_paired, width, floor, detach_gates);
      return {uni, paired};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [h, b_uni, b_paired] = unpack<3>(ctx);
    const BelowAutogradUnlessRecorded below;
    const bool detached = ctx->saved_data["detach_gates"].toBool();
    auto [grad_h, grad_b_uni, grad_b_paired] = OpOf<partition_boundary_backward>::call(
        or_zeros(grads[0], h), or_zeros(grads[1], h), kShare ? or_none(grads[2]) : MaybeTensor(), h, b_uni, b_paired,
        ctx->saved_data["width"].toDouble(), ctx->saved_data["floor"].toDouble(), detached);
    // boundaries that nothing trains have no gradient, not one of zeros: an optimizer leaves them alone
    if (detached && !(kShare && grads[2].defined())) return {grad_h, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    return {grad_h, grad_b_uni, grad_b_paired, Tensor(), Tensor(), Tensor()};
  }
};

Registered<partition_boundary, PartitionBoundary<false>> op("partition_boundary");
Registered<partition_boundary_with_share, PartitionBoundary<true>> share_op("partition_boundary_with_share");
Registered<partition_boundary_backward> backward_op("partition_boundary_backward");

}  // namespace
}  // namespace pgm_fast::host
