// mlp: two linear layers with GELU and dropout between them, rows by rows. Formulas in pgm_fast/ops/mlp.py.
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "autograd.h"
#include "operands.h"
#include "registration.h"
#include "row_blocks.h"

namespace pgm_fast::host {
namespace {

Two mlp(const Tensor& x_, const Tensor& w_in_, const Tensor& b_in_, const Tensor& w_out_, const Tensor& b_out_,
        const MaybeTensor& keep_) {
  const Tensor x = x_.contiguous(), w_in = w_in_.contiguous(), w_out = w_out_.contiguous();
  const Tensor b_in = b_in_.contiguous(), b_out = b_out_.contiguous();
  const MaybeTensor keep = contiguous(keep_);
  check_vector(b_in, w_in.size(0));
  check_vector(b_out, w_out.size(0));
  if (keep) check_same_width(input(*keep, x.size(0)), cpu::Matrix{nullptr, dtype_of(x), w_in.size(0)});
  const Tensor pre = at::empty({x.size(0), w_in.size(0)}, x.options()),
               y = at::empty({x.size(0), w_out.size(0)}, x.options());
  const Tensor in_columns = w_in.t(), out_columns = w_out.t();
  const RowBlocks blocks(x.size(0));
  blocks.each([&](int64_t first, int64_t last) {
    const Tensor memory = at::empty({blocks.size, w_in.size(0)}, x.options());
    for (int64_t block = first; block < last; ++block) {
      const int64_t n = blocks.rows_of(block);
      Tensor pre_n = blocks.part(pre, block), y_n = blocks.part(y, block), hidden = blocks.memory(memory, block);
      at::mm_out(pre_n, blocks.part(x, block), in_columns);
      cpu::gelu(n, output(pre_n, n), input(b_in, 1), blocks.kept(keep, block), output(hidden, n));
      at::mm_out(y_n, hidden, out_columns);
      cpu::add_bias(n, output(y_n, n), input(b_out, 1));
    }
  });
  return {y, pre};
}

Five mlp_backward(const Tensor& grad_, const Tensor& x_, const Tensor& pre_, const Tensor& w_in_, const Tensor& w_out_,
                  const MaybeTensor& keep_, bool x_grad) {
  const Tensor grad = grad_.contiguous(), x = x_.contiguous(), pre = pre_.contiguous(), w_in = w_in_.contiguous();
  const Tensor w_out = w_out_.contiguous();
  const MaybeTensor keep = contiguous(keep_);
  const Tensor at_pre = at::empty_like(pre), hidden = at::empty_like(pre);
  const Tensor grad_x = x_grad ? at::empty_like(x) : at::empty({0}, x.options());
  const RowBlocks blocks(x.size(0));
  blocks.each([&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t n = blocks.rows_of(block);
      Tensor hidden_n = blocks.part(hidden, block);
      const Tensor at_pre_n = blocks.part(at_pre, block);
      // hidden holds its gradient until that is used up
      at::mm_out(hidden_n, blocks.part(grad, block), w_out);
      cpu::gelu_backward(n, input(hidden_n, n), input(blocks.part(pre, block), n), blocks.kept(keep, block),
                         output(at_pre_n, n), output(hidden_n, n));
      if (x_grad) {
        Tensor grad_x_n = blocks.part(grad_x, block);
        at::mm_out(grad_x_n, at_pre_n, w_in);
      }
    }
  });
  Tensor grad_w_in = at::empty_like(w_in), grad_w_out = at::empty_like(w_out);
  Tensor grad_b_in = at::empty({w_in.size(0)}, x.options()), grad_b_out = at::empty({w_out.size(0)}, x.options());
  Tasks tasks;
  tasks.add([&] {
    at::mm_out(grad_w_in, at_pre.t(), x);
    at::sum_out(grad_b_in, at_pre, 0);
  });
  tasks.add([&] {
    at::mm_out(grad_w_out, grad.t(), hidden);
    at::sum_out(grad_b_out, grad, 0);
  });
  tasks.run(x.size(0));
  return {grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out};
}

struct MLP : torch::autograd::Function<MLP> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& w_in, const Tensor& b_in,
                               const Tensor& w_out, const Tensor& b_out, const MaybeTensor& keep) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [y, pre] = OpOf<mlp>::call(x, w_in, b_in, w_out, b_out, keep);
    ctx->save_for_backward({x, pre, w_in, w_out, keep.value_or(Tensor())});
    ctx->mark_non_differentiable({pre});
    ctx->set_materialize_grads(false);
    return {y, pre};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(6);
    const auto [x, pre, w_in, w_out, keep] = unpack<5>(ctx);
    const BelowAutogradUnlessRecorded below;
    const bool x_grad = ctx->needs_input_grad(0);
    auto [grad_x, grad_w_in, grad_b_in, grad_w_out, grad_b_out] =
        OpOf<mlp_backward>::call(grads[0], x, pre, w_in, w_out, or_none(keep), x_grad);
    return {x_grad ? grad_x : Tensor(), grad_w_in, grad_b_in, grad_w_out, grad_b_out, Tensor()};
  }
};

Registered<mlp, MLP, Bound> op("mlp");
Registered<mlp_backward, NoDerivative, Bound> backward_op("mlp_backward");

}  // namespace
}  // namespace pgm_fast::host
