// partition_boundary, with and without its share: CPU kernels behind the dispatcher, and their derivative.
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
using Three = std::tuple<Tensor, Tensor, Tensor>;

Op plain_op("partition_boundary"), share_op("partition_boundary_with_share"),
    backward_op("partition_boundary_backward");

// A boundary per row.
cpu::Matrix boundaries(const Tensor& b, int64_t rows) {
  const auto found = input(b, rows);
  TORCH_CHECK(found.width == 1, "pgm_fast's kernels take one boundary per row here, got ", b.sizes());
  return found;
}

Two forward(const Tensor& h_, const Tensor& b_uni_, const Tensor& b_paired_, double width, double floor,
            bool detach_gates) {
  if (!plain_op.serves(h_, b_uni_, b_paired_))
    return plain_op.in_python<Two>(h_, b_uni_, b_paired_, width, floor, detach_gates);
  const Tensor h = h_.contiguous(), b_uni = b_uni_.contiguous(), b_paired = b_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = boundaries(b_uni, rows), mp = boundaries(b_paired, rows);
  Two made(at::empty_like(h), at::empty_like(h));
  const auto& [uni, paired] = made;
  cpu::partition_boundary(rows, mh, mu, mp, width, floor, detach_gates, output(uni, rows), output(paired, rows),
                          at::get_num_threads());
  return made;
}

Three forward_with_share(const Tensor& h_, const Tensor& b_uni_, const Tensor& b_paired_, double width, double floor,
                         bool detach_gates) {
  if (!share_op.serves(h_, b_uni_, b_paired_))
    return share_op.in_python<Three>(h_, b_uni_, b_paired_, width, floor, detach_gates);
  const Tensor h = h_.contiguous(), b_uni = b_uni_.contiguous(), b_paired = b_paired_.contiguous();
  const int64_t rows = rows_of(h);
  const auto mh = input(h, rows), mu = boundaries(b_uni, rows), mp = boundaries(b_paired, rows);
  Three made(at::empty_like(h), at::empty_like(h), empty_share(b_uni, 4));
  const auto& [uni, paired, share] = made;
  cpu::partition_boundary_with_share(rows, mh, mu, mp, width, floor, detach_gates, output(uni, rows),
                                     output(paired, rows), output(share, rows), at::get_num_threads());
  return made;
}

Three backward(const Tensor& grad_uni_, const Tensor& grad_paired_, const MaybeTensor& grad_share_, const Tensor& h_,
               const Tensor& b_uni_, const Tensor& b_paired_, double width, double floor, bool detach_gates) {
  // served or not by the first argument, as Python selects
  if (!backward_op.serves(grad_uni_, grad_paired_, grad_share_, h_, b_uni_, b_paired_)) {
    return backward_op.in_python<Three>(grad_uni_, grad_paired_, grad_share_, h_, b_uni_, b_paired_, width, floor,
                                        detach_gates);
  }
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

// The ops as the dispatcher has them, whatever serves them. Schemas are defined by the time of the first call.
const auto& dispatched() {
  static const auto op = typed_op<decltype(forward)>("pgm_fast::partition_boundary");
  return op;
}
const auto& dispatched_with_share() {
  static const auto op = typed_op<decltype(forward_with_share)>("pgm_fast::partition_boundary_with_share");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward)>("pgm_fast::partition_boundary_backward");
  return op;
}

template <bool kShare>
struct BoundaryFunction : torch::autograd::Function<BoundaryFunction<kShare>> {
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
      auto [uni, paired, share] = dispatched_with_share().call(h, b_uni, b_paired, width, floor, detach_gates);
      return {uni, paired, share};
    } else {
      auto [uni, paired] = dispatched().call(h, b_uni, b_paired, width, floor, detach_gates);
      return {uni, paired};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const Tensor& h = saved[0];
    const bool detached = ctx->saved_data["detach_gates"].toBool();
    auto [grad_h, grad_b_uni, grad_b_paired] = dispatched_backward().call(
        or_zeros(grads[0], h), or_zeros(grads[1], h), kShare ? or_none(grads[2]) : MaybeTensor(), h, saved[1], saved[2],
        ctx->saved_data["width"].toDouble(), ctx->saved_data["floor"].toDouble(), detached);
    // boundaries that nothing trains have no gradient, not one of zeros: an optimizer leaves them alone
    if (detached && !(kShare && grads[2].defined())) return {grad_h, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    return {grad_h, grad_b_uni, grad_b_paired, Tensor(), Tensor(), Tensor()};
  }
};

Two forward_autograd(const Tensor& h, const Tensor& b_uni, const Tensor& b_paired, double width, double floor,
                     bool detach_gates) {
  if (!recorded(h, b_uni, b_paired)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(h, b_uni, b_paired, width, floor, detach_gates);
  }
  const auto made = BoundaryFunction<false>::apply(h, b_uni, b_paired, width, floor, detach_gates);
  return {made[0], made[1]};
}

Three forward_with_share_autograd(const Tensor& h, const Tensor& b_uni, const Tensor& b_paired, double width,
                                  double floor, bool detach_gates) {
  if (!recorded(h, b_uni, b_paired)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched_with_share().call(h, b_uni, b_paired, width, floor, detach_gates);
  }
  const auto made = BoundaryFunction<true>::apply(h, b_uni, b_paired, width, floor, detach_gates);
  return {made[0], made[1], made[2]};
}

}  // namespace

void implement_partition_boundary(torch::Library& cpu, torch::Library& autograd) {
  implement_op<forward, backward, forward_autograd>(cpu, autograd, "partition_boundary");
  cpu.impl("partition_boundary_with_share", TORCH_FN(forward_with_share));
  implement_autograd<forward_with_share_autograd>(autograd, "partition_boundary_with_share");
}

}  // namespace pgm_fast::host
