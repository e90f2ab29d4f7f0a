// partitioned_linear: the partition feeding torch's matrix products in blocks of rows that stay in cache, and its
// derivative.
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

#include <algorithm>

#include "autograd.h"
#include "operands.h"
#include "registration.h"

namespace pgm_fast::host {
namespace {

using Activation = std::optional<std::string_view>;

// Rows that are partitioned and multiplied before the next ones. Each product reads, and packs, its weights anew, so
// that few rows are slow: on one core 4096 rows of d = 512 to 128 take 13 % longer in blocks of 96 than in blocks of
// 256; to 512 they take 4 % longer, and in blocks of 52 10 %. 256 rows of both operands are 1 MiB there, which stays in
// the second-level cache.
constexpr int64_t kBlockRows = 256, kLeastBlockRows = 96;
// What the blocks of all threads may hold, as a part of h, where that leaves the least rows.
constexpr int64_t kScratchPart = 20;
// Weights that stay in the second-level cache beside their gradients and a block.
constexpr int64_t kCachedWeights = int64_t{1} << 20;

// [0, rows) in equal blocks of at most `limit`.
struct Blocks {
  int64_t rows, count, size;

  Blocks(int64_t rows_, int64_t limit)
      : rows(rows_), count(std::max<int64_t>(1, (rows_ + limit - 1) / limit)), size((rows_ + count - 1) / count) {}

  int64_t rows_of(int64_t block) const { return std::min(size, rows - block * size); }
  Tensor part(const Tensor& x, int64_t block) const {
    return count == 1 ? x : x.narrow(0, block * size, rows_of(block));
  }
};

// The first rows of a block's memory.
Tensor first(const Tensor& x, int64_t rows) { return x.size(0) == rows ? x : x.narrow(0, 0, rows); }

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

Four partitioned_linear(const Tensor& h_, const Tensor& z_, const Tensor& w_uni_, const MaybeTensor& b_uni_,
                        const Tensor& w_paired_, const MaybeTensor& b_paired_, Activation activation,
                        double temperature) {
  const Tensor h = h_.contiguous(), z = z_.contiguous();
  TORCH_CHECK(h.dim() == 2 && z.dim() == 2, "partitioned_linear takes h[N, d] and z[N, gates], got ", h.sizes(),
              " and ", z.sizes());
  const int64_t rows = h.size(0), d = h.size(1);
  check_gates(input(h, rows), input(z, rows));
  const bool keeps = keeps_pre_activation(activation);
  const auto made = [&](int64_t width) { return at::empty({rows, width}, h.options()); };
  Tensor x_uni = made(w_uni_.size(0)), x_paired = made(w_paired_.size(0));
  Tensor u = keeps ? at::empty_like(x_uni) : x_uni, p = keeps ? at::empty_like(x_paired) : x_paired;

  const int threads = at::get_num_threads();
  // rows of p that are still to be computed can hold what u is computed from
  const bool borrows = w_paired_.size(0) >= d;
  const int64_t limit = borrows ? std::clamp(rows / (kScratchPart * threads), kLeastBlockRows, kBlockRows) : kBlockRows;
  const Blocks blocks(rows, limit);
  const auto run = [&](int64_t begin, int64_t end, int within) {
    // threads of a parallel region know nothing of the caller's dispatch state
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto scratch = [&] { return at::empty({blocks.size, d}, h.options()); };
    const Tensor own_uni = borrows ? Tensor() : scratch(), paired = scratch();
    for (int64_t block = begin; block < end && blocks.rows_of(block) > 0; ++block) {
      const int64_t n = blocks.rows_of(block);
      Tensor x_uni_n = blocks.part(x_uni, block), x_paired_n = blocks.part(x_paired, block);
      const Tensor uni_n = borrows ? x_paired_n.flatten().narrow(0, 0, n * d).view({n, d}) : first(own_uni, n);
      const Tensor paired_n = first(paired, n);
      cpu::partition(n, input(blocks.part(h, block), n), input(blocks.part(z, block), n), temperature, output(uni_n, n),
                     output(paired_n, n), within);
      linear_out(uni_n, w_uni_, b_uni_, x_uni_n);
      linear_out(paired_n, w_paired_, b_paired_, x_paired_n);
      Tensor u_n = blocks.part(u, block), p_n = blocks.part(p, block);
      activate_out(x_uni_n, u_n, activation);
      activate_out(x_paired_n, p_n, activation);
    }
  };
  if (blocks.count == 1) {
    run(0, 1, threads);
  } else {
    at::parallel_for(0, blocks.count, 1, [&](int64_t begin, int64_t end) { run(begin, end, 1); });
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

struct Operands {
  Tensor h, z, w_uni, w_paired;
  double temperature;
  int threads;
};

// Gradients of h, z and both weights, given those at the pre-activations. The outputs serve as the memory of what comes
// before them: the partitioned operands, then the gradients that arrive at those, and at last, row by row in place, the
// gradients of h and z. Every product is one product over all rows.
Four backward_whole(const Tensor& g_uni, const Tensor& g_paired, const Operands& x) {
  const int64_t rows = x.h.size(0);
  const auto mh = input(x.h, rows), mz = input(x.z, rows);
  Tensor grad_h = at::empty_like(x.h), grad_z = at::empty_like(x.z);
  Tensor second = x.z.sizes() == x.h.sizes() && x.z.scalar_type() == x.h.scalar_type() ? grad_z : at::empty_like(x.h);
  const auto first_rows = output(grad_h, rows), second_rows = output(second, rows);
  cpu::partition(rows, mh, mz, x.temperature, first_rows, second_rows, x.threads);
  Tensor grad_w_uni = at::mm(g_uni.t(), grad_h), grad_w_paired = at::mm(g_paired.t(), second);
  at::mm_out(grad_h, g_uni, x.w_uni);
  at::mm_out(second, g_paired, x.w_paired);
  cpu::partition_backward(rows, first_rows, second_rows, {}, mh, mz, x.temperature, first_rows, output(grad_z, rows),
                          x.threads);
  return {grad_h, grad_z, grad_w_uni, grad_w_paired};
}

// The same in blocks of rows, each thread with its own sum of the weights' gradients: what is read and written is h, z
// and their gradients, once. For weights that stay in cache beside a block: a third faster at 4096 rows of d = 512 to
// 128.
Four backward_in_blocks(const Tensor& g_uni, const Tensor& g_paired, const Operands& x) {
  const Blocks blocks(x.h.size(0), kBlockRows);
  Tensor grad_h = at::empty_like(x.h), grad_z = at::empty_like(x.z);
  const int64_t parts = std::min<int64_t>(x.threads, blocks.count);
  const Tensor sums_uni = at::empty({parts, x.w_uni.size(0), x.w_uni.size(1)}, x.w_uni.options());
  const Tensor sums_paired = at::empty({parts, x.w_paired.size(0), x.w_paired.size(1)}, x.w_paired.options());
  at::parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor uni = at::empty({blocks.size, x.h.size(1)}, x.h.options()), paired = at::empty_like(uni);
    for (int64_t part = first_part; part < last_part; ++part) {
      Tensor sum_uni = sums_uni.select(0, part), sum_paired = sums_paired.select(0, part);
      const int64_t begin = part * blocks.count / parts, end = (part + 1) * blocks.count / parts;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t n = blocks.rows_of(block);
        Tensor uni_n = first(uni, n), paired_n = first(paired, n);
        const Tensor u = blocks.part(g_uni, block), p = blocks.part(g_paired, block);
        const auto mu = output(uni_n, n), mp = output(paired_n, n);
        const auto mh = input(blocks.part(x.h, block), n), mz = input(blocks.part(x.z, block), n);
        cpu::partition(n, mh, mz, x.temperature, mu, mp, 1);
        const double before = block == begin ? 0 : 1;
        at::addmm_out(sum_uni, sum_uni, u.t(), uni_n, before);
        at::addmm_out(sum_paired, sum_paired, p.t(), paired_n, before);
        at::mm_out(uni_n, u, x.w_uni);
        at::mm_out(paired_n, p, x.w_paired);
        cpu::partition_backward(n, mu, mp, {}, mh, mz, x.temperature, output(blocks.part(grad_h, block), n),
                                output(blocks.part(grad_z, block), n), 1);
      }
    }
  });
  const auto total = [&](const Tensor& sums) { return parts == 1 ? sums.select(0, 0) : sums.sum(0); };
  return {grad_h, grad_z, total(sums_uni), total(sums_paired)};
}

Six partitioned_linear_backward(const Tensor& grad_u, const Tensor& grad_p, const Tensor& saved_u,
                                const Tensor& saved_p, const Tensor& h_, const Tensor& z_, const Tensor& w_uni,
                                const Tensor& w_paired, Activation activation, double temperature) {
  const Operands x{h_.contiguous(), z_.contiguous(), w_uni, w_paired, temperature, at::get_num_threads()};
  TORCH_CHECK(x.h.dim() == 2 && x.z.dim() == 2, "partitioned_linear takes h[N, d] and z[N, gates], got ", x.h.sizes(),
              " and ", x.z.sizes());
  check_gates(input(x.h, x.h.size(0)), input(x.z, x.h.size(0)));
  const Tensor g_uni = at_pre_activation(grad_u, saved_u, activation),
               g_paired = at_pre_activation(grad_p, saved_p, activation);
  const bool cached = static_cast<int64_t>(w_uni.nbytes() + w_paired.nbytes()) <= kCachedWeights;
  const bool sums_exactly = h_.scalar_type() == at::kFloat || h_.scalar_type() == at::kDouble;  // from block to block
  auto [grad_h, grad_z, grad_w_uni, grad_w_paired] = cached && sums_exactly && x.h.size(0) > kBlockRows * x.threads
                                                         ? backward_in_blocks(g_uni, g_paired, x)
                                                         : backward_whole(g_uni, g_paired, x);
  return {grad_h, grad_z, grad_w_uni, g_uni.sum(0), grad_w_paired, g_paired.sum(0)};
}

struct PartitionedLinear : torch::autograd::Function<PartitionedLinear> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, const Tensor& z, const Tensor& w_uni,
                               const MaybeTensor& b_uni, const Tensor& w_paired, const MaybeTensor& b_paired,
                               Activation activation, double temperature) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [u, p, x_uni, x_paired] =
        OpOf<partitioned_linear>::call(h, z, w_uni, b_uni, w_paired, b_paired, activation, temperature);
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
    const auto [saved_u, saved_p, h, z, w_uni, w_paired] = unpack<6>(ctx);
    const BelowAutogradUnlessRecorded below;
    const auto grad = [&h = h](const Tensor& given, const Tensor& weight) {
      return given.defined() ? given : at::zeros_symint({h.sym_size(0), weight.sym_size(0)}, h.options());
    };
    const c10::IValue& name = ctx->saved_data["activation"];
    const Activation activation = name.isNone() ? Activation() : Activation(name.toStringView());
    auto [grad_h, grad_z, grad_w_uni, grad_b_uni, grad_w_paired, grad_b_paired] =
        OpOf<partitioned_linear_backward>::call(grad(grads[0], w_uni), grad(grads[1], w_paired), saved_u, saved_p, h, z,
                                                w_uni, w_paired, activation, ctx->saved_data["temperature"].toDouble());
    return {grad_h,        grad_z,
            grad_w_uni,    ctx->saved_data["has_b_uni"].toBool() ? grad_b_uni : Tensor(),
            grad_w_paired, ctx->saved_data["has_b_paired"].toBool() ? grad_b_paired : Tensor(),
            Tensor(),      Tensor()};
  }
};

Registered<partitioned_linear, PartitionedLinear, Bound> op("partitioned_linear");
Registered<partitioned_linear_backward, NoDerivative, Bound> backward_op("partitioned_linear_backward");

}  // namespace
}  // namespace pgm_fast::host
