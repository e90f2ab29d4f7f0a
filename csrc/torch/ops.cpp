// partition and partition_dual, with and without shares: CPU kernels behind the dispatcher, and their derivatives.
// Schemas, fakes and everything that is not served here are defined in pgm_fast/ops.
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
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Op partition_op("partition"), partition_share_op("partition_with_share"), partition_backward_op("partition_backward");
Op dual_op("partition_dual"), dual_share_op("partition_dual_with_share"), dual_backward_op("partition_dual_backward");

Two partition(const Tensor& h_, const Tensor& z_, double temperature) {
  if (!partition_op.serves(h_, z_)) return partition_op.in_python<Two>(h_, z_, temperature);
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
  if (!partition_share_op.serves(h_, z_)) return partition_share_op.in_python<Three>(h_, z_, temperature);
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
  // served or not by the first argument, as Python selects
  if (!partition_backward_op.serves(grad_uni_, grad_paired_, grad_share_, h_, z_)) {
    return partition_backward_op.in_python<Two>(grad_uni_, grad_paired_, grad_share_, h_, z_, temperature);
  }
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

Three partition_dual(const Tensor& h_, const Tensor& z_uni_, const Tensor& z_paired_, double temperature) {
  if (!dual_op.serves(h_, z_uni_, z_paired_)) return dual_op.in_python<Three>(h_, z_uni_, z_paired_, temperature);
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
  if (!dual_share_op.serves(h_, z_uni_, z_paired_))
    return dual_share_op.in_python<Four>(h_, z_uni_, z_paired_, temperature);
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
  if (!dual_backward_op.serves(grad_uni_, grad_paired_, grad_shared_, grad_share_, h_, z_uni_, z_paired_)) {
    return dual_backward_op.in_python<Three>(grad_uni_, grad_paired_, grad_shared_, grad_share_, h_, z_uni_, z_paired_,
                                             temperature);
  }
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

// The ops as the dispatcher has them, whatever serves them. Schemas are defined by the time of the first call.
const auto& dispatched_partition() {
  static const auto op = typed_op<decltype(partition)>("pgm_fast::partition");
  return op;
}
const auto& dispatched_partition_with_share() {
  static const auto op = typed_op<decltype(partition_with_share)>("pgm_fast::partition_with_share");
  return op;
}
const auto& dispatched_partition_backward() {
  static const auto op = typed_op<decltype(partition_backward)>("pgm_fast::partition_backward");
  return op;
}
const auto& dispatched_dual() {
  static const auto op = typed_op<decltype(partition_dual)>("pgm_fast::partition_dual");
  return op;
}
const auto& dispatched_dual_with_share() {
  static const auto op = typed_op<decltype(partition_dual_with_share)>("pgm_fast::partition_dual_with_share");
  return op;
}
const auto& dispatched_dual_backward() {
  static const auto op = typed_op<decltype(partition_dual_backward)>("pgm_fast::partition_dual_backward");
  return op;
}

template <bool kShare>
struct PartitionFunction : torch::autograd::Function<PartitionFunction<kShare>> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z, double temperature) {
    ctx->save_for_backward({h, z});
    ctx->saved_data["temperature"] = temperature;
    const at::AutoDispatchBelowADInplaceOrView below;
    if constexpr (kShare) {
      ctx->set_materialize_grads(false);
      auto [uni, paired, share] = dispatched_partition_with_share().call(h, z, temperature);
      return {uni, paired, share};
    } else {
      auto [uni, paired] = dispatched_partition().call(h, z, temperature);
      return {uni, paired};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const Tensor &h = saved[0], &z = saved[1];
    auto [grad_h, grad_z] = dispatched_partition_backward().call(or_zeros(grads[0], h), or_zeros(grads[1], h),
                                                                 kShare ? or_none(grads[2]) : MaybeTensor(), h, z,
                                                                 ctx->saved_data["temperature"].toDouble());
    return {grad_h, grad_z, Tensor()};
  }
};

Two partition_autograd(const Tensor& h, const Tensor& z, double temperature) {
  if (!recorded(h, z)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched_partition().call(h, z, temperature);
  }
  const auto made = PartitionFunction<false>::apply(h, z, temperature);
  return {made[0], made[1]};
}

Three partition_with_share_autograd(const Tensor& h, const Tensor& z, double temperature) {
  if (!recorded(h, z)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched_partition_with_share().call(h, z, temperature);
  }
  const auto made = PartitionFunction<true>::apply(h, z, temperature);
  return {made[0], made[1], made[2]};
}

template <bool kShare>
struct DualFunction : torch::autograd::Function<DualFunction<kShare>> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z_uni, const Tensor& z_paired,
                               double temperature) {
    ctx->save_for_backward({h, z_uni, z_paired});
    ctx->saved_data["temperature"] = temperature;
    const at::AutoDispatchBelowADInplaceOrView below;
    if constexpr (kShare) {
      ctx->set_materialize_grads(false);
      auto [uni_only, paired_only, shared, share] = dispatched_dual_with_share().call(h, z_uni, z_paired, temperature);
      return {uni_only, paired_only, shared, share};
    } else {
      auto [uni_only, paired_only, shared] = dispatched_dual().call(h, z_uni, z_paired, temperature);
      return {uni_only, paired_only, shared};
    }
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const Tensor& h = saved[0];
    auto [grad_h, grad_z_uni, grad_z_paired] = dispatched_dual_backward().call(
        or_zeros(grads[0], h), or_zeros(grads[1], h), or_zeros(grads[2], h), kShare ? or_none(grads[3]) : MaybeTensor(),
        h, saved[1], saved[2], ctx->saved_data["temperature"].toDouble());
    return {grad_h, grad_z_uni, grad_z_paired, Tensor()};
  }
};

Three partition_dual_autograd(const Tensor& h, const Tensor& z_uni, const Tensor& z_paired, double temperature) {
  if (!recorded(h, z_uni, z_paired)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched_dual().call(h, z_uni, z_paired, temperature);
  }
  const auto made = DualFunction<false>::apply(h, z_uni, z_paired, temperature);
  return {made[0], made[1], made[2]};
}

Four partition_dual_with_share_autograd(const Tensor& h, const Tensor& z_uni, const Tensor& z_paired,
                                        double temperature) {
  if (!recorded(h, z_uni, z_paired)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched_dual_with_share().call(h, z_uni, z_paired, temperature);
  }
  const auto made = DualFunction<true>::apply(h, z_uni, z_paired, temperature);
  return {made[0], made[1], made[2], made[3]};
}

}  // namespace

void bind_partitioned_linear(py::module_& m);
void bind_reconstruction(py::module_& m);
void bind_duc_loss(py::module_& m);
void bind_info_nce(py::module_& m);
void bind_mlp(py::module_& m);
void implement_partition_boundary(torch::Library& cpu, torch::Library& autograd);
void implement_partitioned_linear(torch::Library& cpu, torch::Library& autograd);
void implement_reconstruction(torch::Library& cpu, torch::Library& autograd);
void implement_duc_loss(torch::Library& cpu, torch::Library& autograd);
void implement_info_nce(torch::Library& cpu, torch::Library& autograd);
void implement_gated_mixture(torch::Library& cpu, torch::Library& autograd);
void implement_gaussian_sample_kl(torch::Library& cpu, torch::Library& autograd);
void implement_mlp(torch::Library& cpu, torch::Library& autograd);

namespace {

// The backward ops keep Python's derivative, which refuses: it is reached only where a second derivative is recorded.
void implement_partitions(torch::Library& cpu, torch::Library& autograd) {
  cpu.impl("partition", TORCH_FN(partition));
  cpu.impl("partition_with_share", TORCH_FN(partition_with_share));
  cpu.impl("partition_backward", TORCH_FN(partition_backward));
  cpu.impl("partition_dual", TORCH_FN(partition_dual));
  cpu.impl("partition_dual_with_share", TORCH_FN(partition_dual_with_share));
  cpu.impl("partition_dual_backward", TORCH_FN(partition_dual_backward));
  implement_autograd<partition_autograd>(autograd, "partition");
  implement_autograd<partition_with_share_autograd>(autograd, "partition_with_share");
  implement_autograd<partition_dual_autograd>(autograd, "partition_dual");
  implement_autograd<partition_dual_with_share_autograd>(autograd, "partition_dual_with_share");
}

void implement() {
  // a library takes its kernels with it when it goes
  static torch::Library cpu(torch::Library::IMPL, "pgm_fast", c10::DispatchKey::CPU, __FILE__, __LINE__);
  static torch::Library autograd(torch::Library::IMPL, "pgm_fast", c10::DispatchKey::AutogradCPU, __FILE__, __LINE__);
  implement_partitions(cpu, autograd);
  implement_partition_boundary(cpu, autograd);
  implement_partitioned_linear(cpu, autograd);
  implement_reconstruction(cpu, autograd);
  implement_duc_loss(cpu, autograd);
  implement_info_nce(cpu, autograd);
  implement_gated_mixture(cpu, autograd);
  implement_gaussian_sample_kl(cpu, autograd);
  implement_mlp(cpu, autograd);
}

}  // namespace

void bind_ops(py::module_& m) {
  m.attr("schemas") = Op::schemas();
  m.def("implement", &implement,
        "Puts the kernels behind the ops of these schemas; once, after Python has defined them.");
  m.def("serve", &Op::serve, "The kernels take calls of this op whose first tensor has this dtype, until forget().");
  m.def("forget", &Op::forget);
  m.def("set_python", &Op::set_python,
        "What computes the calls of this op that the kernels do not take, and its plain formula.");
  bind_partitioned_linear(m);
  bind_reconstruction(m);
  bind_duc_loss(m);
  bind_info_nce(m);
  bind_mlp(m);
}

}  // namespace pgm_fast::host
