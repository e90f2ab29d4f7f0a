// partitioned_linear: the partition feeding torch's matrix products in blocks of rows that stay in cache, and its derivative.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "autograd.h"
#include "operands.h"
#include "serving.h"

namespace pgm_fast::host {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Activation = std::optional<std::string_view>;
using MaybeTensor = std::optional<Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Op forward_op("partitioned_linear"), backward_op("partitioned_linear_backward");

// Rows that are partitioned, multiplied and activated before the next ones. Enough to feed the products: on one core 4096 rows take
// 12 % longer in blocks of 64, 5 % in blocks of 128 and 2 % in blocks of 256 than as a whole (d = 512). 256 rows of both operands are
// 1 MiB there, which stays in the second-level cache.
constexpr int64_t kBlockRows = 256;

bool keeps_pre_activation(const Activation& activation) { return activation == "gelu" || activation == "silu"; }

void linear_out(const Tensor& x, const Tensor& weight, const MaybeTensor& bias, Tensor out) {
  if (bias) {
    at::addmm_out(out, *bias, x, weight.t());
  } else {
    at::mm_out(out, x, weight.t());
  }
}

void activate_out(Tensor& x, Tensor& out, const Activation& activation) {
  if (activation == "relu") {
    at::relu_(x);
  } else if (activation == "gelu") {
    at::gelu_out(out, x);
  } else if (activation == "silu") {
    at::silu_out(out, x);
  }
}

Four forward(const Tensor& h_, const Tensor& z_, const Tensor& w_uni_, const MaybeTensor& b_uni_, const Tensor& w_paired_,
             const MaybeTensor& b_paired_, Activation activation, double temperature) {
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  TORCH_CHECK(h.dim() == 2 && z.dim() == 2, "partitioned_linear takes h[N, d] and z[N, gates], got ", h.sizes(), " and ", z.sizes());
  const int64_t rows = h.size(0), d = h.size(1);
  check_gates(input(h, rows), input(z, rows));
  const bool keeps = keeps_pre_activation(activation);
  const auto made = [&](int64_t width) { return at::empty({rows, width}, h.options()); };
  Tensor x_uni = made(w_uni_.size(0)), x_paired = made(w_paired_.size(0));
  Tensor u = keeps ? at::empty_like(x_uni) : x_uni, p = keeps ? at::empty_like(x_paired) : x_paired;

  const int64_t blocks = std::max<int64_t>(1, (rows + kBlockRows - 1) / kBlockRows);
  const int64_t size = (rows + blocks - 1) / blocks;
  const auto run = [&](int64_t first, int64_t last, int threads) {
    // threads of a parallel region know nothing of the caller's dispatch state
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor uni = at::empty({size, d}, h.options()), paired = at::empty({size, d}, h.options());
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * size, n = std::min(size, rows - begin);
      if (n <= 0) break;
      const auto rows_of_block = [&](const Tensor& x) { return n == rows ? x : x.narrow(0, begin, n); };
      const Tensor uni_n = n == size ? uni : uni.narrow(0, 0, n), paired_n = n == size ? paired : paired.narrow(0, 0, n);
      cpu::partition(n, input(rows_of_block(h), n), input(rows_of_block(z), n), temperature, output(uni_n, n), output(paired_n, n), threads);
      Tensor x_uni_n = rows_of_block(x_uni), x_paired_n = rows_of_block(x_paired);
      linear_out(uni_n, w_uni_, b_uni_, x_uni_n);
      linear_out(paired_n, w_paired_, b_paired_, x_paired_n);
      Tensor u_n = rows_of_block(u), p_n = rows_of_block(p);
      activate_out(x_uni_n, u_n, activation);
      activate_out(x_paired_n, p_n, activation);
    }
  };
  if (blocks == 1) {
    run(0, 1, at::get_num_threads());
  } else {
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) { run(first, last, 1); });
  }
  if (keeps) return {u, p, x_uni, x_paired};
  return {u, p, at::empty({0}, h.options()), at::empty({0}, h.options())};
}

Tensor at_pre_activation(const Tensor& grad, const Tensor& saved, const Activation& activation) {
  if (activation == "relu") return at::threshold_backward(grad, saved, 0);
  if (activation == "gelu") return at::gelu_backward(grad, saved);
  if (activation == "silu") return at::silu_backward(grad, saved);
  return grad;
}

// The outputs serve as the memory of what comes before them: the partitioned operands, then the gradients that arrive at those, and
// at last, row by row in place, the gradients of h and z. Every product is one product over all rows.
Six backward(const Tensor& grad_u, const Tensor& grad_p, const Tensor& saved_u, const Tensor& saved_p, const Tensor& h_, const Tensor& z_,
             const Tensor& w_uni, const Tensor& w_paired, Activation activation, double temperature) {
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  TORCH_CHECK(h.dim() == 2 && z.dim() == 2, "partitioned_linear takes h[N, d] and z[N, gates], got ", h.sizes(), " and ", z.sizes());
  const int64_t rows = h.size(0);
  const int threads = at::get_num_threads();
  const auto mh = input(h, rows), mz = input(z, rows);
  check_gates(mh, mz);
  const Tensor g_uni = at_pre_activation(grad_u, saved_u, activation), g_paired = at_pre_activation(grad_p, saved_p, activation);
  Tensor grad_h = at::empty_like(h), grad_z = at::empty_like(z);
  Tensor second = z.sizes() == h.sizes() && z.scalar_type() == h.scalar_type() ? grad_z : at::empty_like(h);
  const auto first_rows = output(grad_h, rows), second_rows = output(second, rows);
  cpu::partition(rows, mh, mz, temperature, first_rows, second_rows, threads);
  Tensor grad_w_uni = at::mm(g_uni.t(), grad_h), grad_w_paired = at::mm(g_paired.t(), second);
  at::mm_out(grad_h, g_uni, w_uni);
  at::mm_out(second, g_paired, w_paired);
  cpu::partition_backward(rows, first_rows, second_rows, mh, mz, temperature, first_rows, output(grad_z, rows), threads);
  return {grad_h, grad_z, grad_w_uni, g_uni.sum(0), grad_w_paired, g_paired.sum(0)};
}

Four forward_cpu(const Tensor& h, const Tensor& z, const Tensor& w_uni, const MaybeTensor& b_uni, const Tensor& w_paired,
                 const MaybeTensor& b_paired, Activation activation, double temperature) {
  if (!forward_op.serves(h, z, w_uni, b_uni, w_paired, b_paired)) {
    return forward_op.in_python<Four>(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
  }
  return forward(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
}

Six backward_cpu(const Tensor& grad_u, const Tensor& grad_p, const Tensor& saved_u, const Tensor& saved_p, const Tensor& h,
                 const Tensor& z, const Tensor& w_uni, const Tensor& w_paired, Activation activation, double temperature) {
  if (!backward_op.serves(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired)) {
    return backward_op.in_python<Six>(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature);
  }
  return backward(grad_u, grad_p, saved_u, saved_p, h, z, w_uni, w_paired, activation, temperature);
}

const auto& dispatched() {
  static const auto op = typed_op<decltype(forward_cpu)>("pgm_fast::partitioned_linear");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward_cpu)>("pgm_fast::partitioned_linear_backward");
  return op;
}

struct PartitionedLinear : torch::autograd::Function<PartitionedLinear> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z, const Tensor& w_uni, const MaybeTensor& b_uni,
                               const Tensor& w_paired, const MaybeTensor& b_paired, Activation activation, double temperature) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [u, p, x_uni, x_paired] = dispatched().call(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
    const bool from_outputs = activation == "relu";  // its mask can be read off its output
    ctx->save_for_backward({from_outputs ? u : x_uni, from_outputs ? p : x_paired, h, z, w_uni, w_paired});
    ctx->mark_non_differentiable({x_uni, x_paired});
    ctx->set_materialize_grads(false);
    ctx->saved_data["activation"] = activation ? c10::IValue(std::string(*activation)) : c10::IValue();
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["has_b_uni"] = b_uni.has_value();
    ctx->saved_data["has_b_paired"] = b_paired.has_value();
    return {u, p, x_uni, x_paired};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &h = saved[2], &w_uni = saved[4], &w_paired = saved[5];
    const BelowAutogradUnlessRecorded below;
    const auto grad = [&](const Tensor& given, const Tensor& weight) {
      return given.defined() ? given : at::zeros_symint({h.sym_size(0), weight.sym_size(0)}, h.options());
    };
    const c10::IValue& name = ctx->saved_data["activation"];
    const Activation activation = name.isNone() ? Activation() : Activation(name.toStringView());
    auto [grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired] =
        dispatched_backward().call(grad(grads[0], w_uni), grad(grads[1], w_paired), saved[0], saved[1], h, saved[3], w_uni, w_paired,
                                   activation, ctx->saved_data["temperature"].toDouble());
    return {grad_h,
            grad_z,
            grad_w_uni,
            ctx->saved_data["has_b_uni"].toBool() ? grad_b_uni : Tensor(),
            grad_w_paired,
            ctx->saved_data["has_b_paired"].toBool() ? grad_b_paired : Tensor(),
            Tensor(),
            Tensor()};
  }
};

Four forward_autograd(const Tensor& h, const Tensor& z, const Tensor& w_uni, const MaybeTensor& b_uni, const Tensor& w_paired,
                      const MaybeTensor& b_paired, Activation activation, double temperature) {
  if (!recorded(h, z, w_uni, b_uni, w_paired, b_paired)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
  }
  const auto made = PartitionedLinear::apply(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
  return {made[0], made[1], made[2], made[3]};
}

}  // namespace

void bind_partitioned_linear(py::module_& m) {
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("partitioned_linear", &forward, without_gil);
  m.def("partitioned_linear_backward", &backward, without_gil);
}

void implement_partitioned_linear(torch::Library& cpu, torch::Library& autograd) {
  cpu.impl("partitioned_linear", TORCH_FN(forward_cpu));
  cpu.impl("partitioned_linear_backward", TORCH_FN(backward_cpu));
  autograd.impl("partitioned_linear", TORCH_FN(forward_autograd));
}

}  // namespace pgm_fast::host
