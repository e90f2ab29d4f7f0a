// uni_paired_block: one modality's gate, learners and decoder. Every step but the weights' gradients stays within a row, so each thread takes
// its rows through all of them, with what lies between two steps in its own cache and no other thread to wait for; then the weights'
// gradients, each a product over all rows, are shared out among the threads. Formulas in pgm_fast/ops/uni_paired_block.py.
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <array>
#include <numeric>
#include <vector>

#include "autograd.h"
#include "operands.h"
#include "registration.h"
#include "row_blocks.h"
#include "serving.h"

namespace pgm_fast::host {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensors>;
using Gradients = std::tuple<Tensor, Tensors>;

Op forward_op("uni_paired_block"), backward_op("uni_paired_block_backward");

cpu::Matrix vector_of(const Tensor& x) { return output(x, 1); }

// Of one learner: its two layers, the norm, its part of the decoder, and what dropout keeps of its hidden features.
struct Learner {
  enum { in_weight, in_bias, out_weight, out_bias, norm_weight, norm_bias, decoder, count };
  at::TensorList parameters;
  MaybeTensor keep;
  Tensor in_columns, out_columns, decoder_columns;  // transposed weights

  Learner() = default;
  Learner(at::TensorList parameters_, MaybeTensor keep_)
      : parameters(parameters_),
        keep(std::move(keep_)),
        in_columns(parameters[in_weight].t()),
        out_columns(parameters[out_weight].t()),
        decoder_columns(parameters[decoder].t()) {}

  const Tensor& operator[](int which) const { return parameters[which]; }
  int64_t hidden() const { return parameters[in_weight].size(0); }
  int64_t features() const { return parameters[out_weight].size(0); }
};

// The operands of both passes, contiguous. Order of the parameters: gate_weight, gate_bias, those of the uni-modal learner, those of the
// paired one, decoder_bias.
struct Operands {
  Tensor h, weight;
  Tensors parameters;
  std::array<Learner, 2> learners;
  Tensors gate_weights, gate_columns, gate_biases;  // one or, for the dual gate, two
  double temperature;

  Operands(const Tensor& h_, at::TensorList parameters_, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
           const MaybeTensor& row_weight, bool dual, double temperature_)
      : h(h_.contiguous()), weight(weights_or_mean(row_weight, h)), temperature(temperature_) {
    for (const Tensor& x : parameters_) parameters.push_back(x.contiguous());
    const at::TensorList all(parameters);
    learners[0] = {all.slice(2, Learner::count), host::contiguous(keep_uni)};
    learners[1] = {all.slice(2 + Learner::count, Learner::count), host::contiguous(keep_paired)};
    gate_weights = dual ? parameters[0].chunk(2) : Tensors{parameters[0]};
    gate_biases = dual ? parameters[1].chunk(2) : Tensors{parameters[1]};
    for (const Tensor& weight : gate_weights) gate_columns.push_back(weight.t());
    check_gates(input(h, rows()), {nullptr, dtype_of(h), gates()});
    for (const Learner& learner : learners) {
      check_vector(learner[Learner::in_bias], learner.hidden());
      for (const int which : {Learner::out_bias, Learner::norm_weight, Learner::norm_bias}) check_vector(learner[which], learner.features());
      if (learner.keep) check_same_width(input(*learner.keep, rows()), cpu::Matrix{nullptr, dtype_of(h), learner.hidden()});
    }
    check_vector(decoder_bias(), d());
  }
  int64_t rows() const { return h.size(0); }
  int64_t d() const { return h.size(1); }
  int64_t gates() const { return gate_weights[0].size(0); }
  bool dual() const { return gate_weights.size() == 2; }
  const Tensor& decoder_bias() const { return parameters.back(); }
  Tensor made(int64_t rows, int64_t width) const { return at::empty({rows, width}, h.options()); }
};

// What backward reads of forward beside the results: gate logits, and of each learner its pre-activations, what is normed, and mean and
// rstd of that.
struct Saved {
  Tensors all;

  explicit Saved(const Operands& x) {
    for (size_t gate = 0; gate < x.gate_weights.size(); ++gate) all.push_back(x.made(x.rows(), x.gates()));
    for (const Learner& learner : x.learners) {
      all.push_back(x.made(x.rows(), learner.hidden()));
      all.push_back(x.made(x.rows(), learner.features()));
      all.push_back(x.made(2, x.rows()));
    }
  }
  explicit Saved(const Tensors& saved) : all(saved) {}

  size_t gates() const { return all.size() - 6; }
  const Tensor& logits(size_t gate) const { return all[gate]; }
  const Tensor& pre_activation(int side) const { return all[gates() + 3 * side]; }
  const Tensor& before_norm(int side) const { return all[gates() + 3 * side + 1]; }
  cpu::Matrix mean(int side, int64_t begin) const { return statistic(side, 0, begin); }
  cpu::Matrix rstd(int side, int64_t begin) const { return statistic(side, 1, begin); }

 private:
  cpu::Matrix statistic(int side, int64_t which, int64_t begin) const {
    const Tensor& both = all[gates() + 3 * side + 2];
    char* const data = static_cast<char*>(const_cast<void*>(both.const_data_ptr()));
    return {data + (which * both.size(1) + begin) * both.element_size(), dtype_of(both), 1};
  }
};

// The rows' weights from `begin` on.
const void* weights_from(const Tensor& weight, int64_t begin) {
  return static_cast<const char*>(weight.const_data_ptr()) + begin * weight.element_size();
}

// The parts of h that the learners read, under gates of these logits. shared is scratch for the dual gate.
void split(const Operands& x, int64_t n, const Tensor& h, const Tensors& logits, const Tensor& uni, const Tensor& paired, Tensor shared) {
  if (!x.dual()) {
    cpu::partition(n, input(h, n), input(logits[0], n), x.temperature, output(uni, n), output(paired, n), 1);
    return;
  }
  cpu::partition_dual(n, input(h, n), input(logits[0], n), input(logits[1], n), x.temperature, output(uni, n), output(paired, n),
                      output(shared, n), 1);
  uni.add_(shared);
  paired.add_(shared);
}

void split_backward(const Operands& x, int64_t n, const Tensor& grad_uni, const Tensor& grad_paired, const Tensor& h,
                    const Tensors& logits, const Tensor& grad_h, const Tensors& grad_logits, Tensor shared) {
  const auto gu = input(grad_uni, n), gp = input(grad_paired, n), mh = input(h, n), mz = input(logits[0], n);
  if (!x.dual()) {
    cpu::partition_backward(n, gu, gp, {}, mh, mz, x.temperature, output(grad_h, n), output(grad_logits[0], n), 1);
    return;
  }
  at::add_out(shared, grad_uni, grad_paired);
  cpu::partition_dual_backward(n, gu, gp, input(shared, n), {}, mh, mz, input(logits[1], n), x.temperature, output(grad_h, n),
                               output(grad_logits[0], n), output(grad_logits[1], n), 1);
}

Results forward(const Tensor& h, const Tensors& parameters, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
                const MaybeTensor& row_weight, bool dual, bool /*through*/, double temperature, double eps) {
  const Operands x(h, parameters, keep_uni, keep_paired, row_weight, dual, temperature);
  const Saved saved(x);
  const std::array<Tensor, 2> features{x.made(x.rows(), x.learners[0].features()), x.made(x.rows(), x.learners[1].features())};
  const Tensor decoded = x.made(x.rows(), x.d());
  std::vector<double> by_row(x.rows());
  const RowBlocks blocks(x.rows());
  blocks.each([&](int64_t first_block, int64_t last_block) {
    const std::array<Tensor, 2> parts{x.made(blocks.size, x.d()), x.made(blocks.size, x.d())};
    const std::array<Tensor, 2> hidden{x.made(blocks.size, x.learners[0].hidden()), x.made(blocks.size, x.learners[1].hidden())};
    const Tensor shared = dual ? at::empty_like(parts[0]) : Tensor();
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t n = blocks.rows_of(block), begin = block * blocks.size;
      const Tensor h_n = blocks.part(x.h, block);
      Tensors logits;
      for (size_t gate = 0; gate < x.gate_weights.size(); ++gate) {
        Tensor z = blocks.part(saved.logits(gate), block);
        at::mm_out(z, h_n, x.gate_columns[gate]);
        cpu::add_bias(n, output(z, n), vector_of(x.gate_biases[gate]));
        logits.push_back(z);
      }
      const std::array<Tensor, 2> parts_n{blocks.memory(parts[0], block), blocks.memory(parts[1], block)};
      split(x, n, h_n, logits, parts_n[0], parts_n[1], dual ? blocks.memory(shared, block) : shared);
      Tensor decoded_n = blocks.part(decoded, block);
      for (int side = 0; side < 2; ++side) {
        const Learner& learner = x.learners[side];
        Tensor x_n = blocks.part(saved.pre_activation(side), block), y_n = blocks.part(saved.before_norm(side), block);
        Tensor hidden_n = blocks.memory(hidden[side], block), f_n = blocks.part(features[side], block);
        at::mm_out(x_n, parts_n[side], learner.in_columns);
        cpu::gelu(n, output(x_n, n), vector_of(learner[Learner::in_bias]), blocks.kept(learner.keep, block), output(hidden_n, n));
        at::mm_out(y_n, hidden_n, learner.out_columns);
        cpu::layer_norm(n, output(y_n, n), vector_of(learner[Learner::out_bias]), vector_of(learner[Learner::norm_weight]),
                        vector_of(learner[Learner::norm_bias]), eps, output(f_n, n), saved.mean(side, begin), saved.rstd(side, begin));
        at::addmm_out(decoded_n, decoded_n, f_n, learner.decoder_columns, side);
      }
      cpu::reconstruction_loss(n, output(decoded_n, n), vector_of(x.decoder_bias()), input(h_n, n), weights_from(x.weight, begin),
                               by_row.data() + begin, 1);
    }
  });
  const Tensor loss = at::empty({}, x.weight.options());
  loss.fill_(std::accumulate(by_row.begin(), by_row.end(), 0.0));
  return {features[0], features[1], decoded, loss, saved.all};
}

Gradients backward(const Tensor& grad_uni, const Tensor& grad_paired, const Tensor& grad_decoded_, const Tensor& grad_loss,
                   const Tensor& h, const Tensors& parameters, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
                   const MaybeTensor& row_weight, const Tensor& uni, const Tensor& paired, const Tensor& decoded_, const Tensors& saved_,
                   bool dual, bool through, double temperature) {
  const Operands x(h, parameters, keep_uni, keep_paired, row_weight, dual, temperature);
  const Saved saved(saved_);
  const int64_t rows = x.rows();
  const std::array<Tensor, 2> given{grad_uni.contiguous(), grad_paired.contiguous()}, features{uni.contiguous(), paired.contiguous()};
  const Tensor grad_decoded = grad_decoded_.contiguous(), decoded = decoded_.contiguous();
  const double by_loss = grad_loss.item<double>();
  const auto each = [&](auto&& width) {
    return std::array<Tensor, 2>{x.made(rows, width(x.learners[0])), x.made(rows, width(x.learners[1]))};
  };
  const auto hidden_width = [](const Learner& learner) { return learner.hidden(); };
  const auto feature_width = [](const Learner& learner) { return learner.features(); };
  const auto d_width = [&](const Learner&) { return x.d(); };
  // at what each parameter is applied to, and the gradient that arrives at its result
  const auto parts = each(d_width), hidden = each(hidden_width);
  const auto at_features = each(feature_width), at_norm = each(feature_width), at_pre_activation = each(hidden_width);
  const Tensor at_decoded = x.made(rows, x.d());
  Tensors at_logits;
  for (size_t gate = 0; gate < x.gate_weights.size(); ++gate) at_logits.push_back(x.made(rows, x.gates()));
  const Tensor grad_h = at::empty_like(x.h);

  const RowBlocks blocks(rows);
  blocks.each([&](int64_t first_block, int64_t last_block) {
    const std::array<Tensor, 2> at_parts{x.made(blocks.size, x.d()), x.made(blocks.size, x.d())};
    const Tensor spare = dual ? at::empty_like(at_parts[0]) : Tensor(), at_target = through ? at::empty_like(at_parts[0]) : Tensor();
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t n = blocks.rows_of(block), begin = block * blocks.size;
      const auto of = [&](const Tensor& all) { return blocks.part(all, block); };
      const Tensor h_n = of(x.h), by_decoded = of(at_decoded), grad_h_n = of(grad_h);
      const Tensor spare_n = spare.defined() ? blocks.memory(spare, block) : spare;
      const std::array<Tensor, 2> parts_n{of(parts[0]), of(parts[1])}, at_parts_n{blocks.memory(at_parts[0], block), blocks.memory(at_parts[1], block)};
      Tensors logits, by_logits;
      for (size_t gate = 0; gate < at_logits.size(); ++gate) {
        logits.push_back(of(saved.logits(gate)));
        by_logits.push_back(of(at_logits[gate]));
      }
      split(x, n, h_n, logits, parts_n[0], parts_n[1], spare_n);
      cpu::reconstruction_gradient(n, input(of(grad_decoded), n), input(of(decoded), n), input(h_n, n), weights_from(x.weight, begin),
                                   by_loss, output(by_decoded, n),
                                   through ? output(blocks.memory(at_target, block), n) : cpu::Matrix{nullptr, dtype_of(x.h), x.d()}, 1);
      for (int side = 0; side < 2; ++side) {
        const Learner& learner = x.learners[side];
        Tensor by_features = of(at_features[side]), by_norm = of(at_norm[side]), by_x = of(at_pre_activation[side]);
        Tensor hidden_n = of(hidden[side]), at_part = at_parts_n[side];
        const Tensor x_n = of(saved.pre_activation(side)), y_n = of(saved.before_norm(side));
        at::addmm_out(by_features, of(given[side]), by_decoded, learner[Learner::decoder]);
        cpu::layer_norm_backward(n, input(by_features, n), input(y_n, n), saved.mean(side, begin), saved.rstd(side, begin),
                                 vector_of(learner[Learner::norm_weight]), output(by_norm, n));
        // hidden holds its gradient until that is used up
        at::mm_out(hidden_n, by_norm, learner[Learner::out_weight]);
        cpu::gelu_backward(n, input(hidden_n, n), input(x_n, n), blocks.kept(learner.keep, block), output(by_x, n), output(hidden_n, n));
        at::mm_out(at_part, by_x, learner[Learner::in_weight]);
      }
      split_backward(x, n, at_parts_n[0], at_parts_n[1], h_n, logits, grad_h_n, by_logits, spare_n);
      for (size_t gate = 0; gate < by_logits.size(); ++gate) {
        Tensor sum = grad_h_n;
        at::addmm_out(sum, sum, by_logits[gate], x.gate_weights[gate]);
      }
      if (through) grad_h_n.add_(blocks.memory(at_target, block));
    }
  });

  Tensors grads;
  for (const Tensor& parameter : x.parameters) grads.push_back(at::empty_like(parameter));
  Tasks tasks;
  const auto linear = [&](Tensor weight, Tensor bias, const Tensor& at_result, const Tensor& operand) {
    tasks.add([=] {
      Tensor by_weight = weight, by_bias = bias;
      at::mm_out(by_weight, at_result.t(), operand);
      if (by_bias.defined()) at::sum_out(by_bias, at_result, 0);
    });
  };
  const auto gate_weights = dual ? grads[0].chunk(2) : Tensors{grads[0]}, gate_biases = dual ? grads[1].chunk(2) : Tensors{grads[1]};
  for (size_t gate = 0; gate < at_logits.size(); ++gate) linear(gate_weights[gate], gate_biases[gate], at_logits[gate], x.h);
  for (int side = 0; side < 2; ++side) {
    const auto grad = [&, side](int which) { return grads[2 + side * Learner::count + which]; };
    linear(grad(Learner::in_weight), grad(Learner::in_bias), at_pre_activation[side], parts[side]);
    linear(grad(Learner::out_weight), grad(Learner::out_bias), at_norm[side], hidden[side]);
    linear(grad(Learner::decoder), side == 0 ? grads.back() : Tensor(), at_decoded, features[side]);
    tasks.add([&, grad, side] {
      cpu::layer_norm_parameters_backward(rows, input(at_features[side], rows), input(saved.before_norm(side), rows), saved.mean(side, 0),
                                          saved.rstd(side, 0), vector_of(grad(Learner::norm_weight)),
                                          vector_of(grad(Learner::norm_bias)));
    });
  }
  tasks.run(rows);
  return {grad_h, grads};
}

Results forward_cpu(const Tensor& h, at::TensorList parameters, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
                    const MaybeTensor& row_weight, bool dual, bool through, double temperature, double eps) {
  if (!forward_op.serves(h)) {
    return forward_op.in_python<Results>(h, parameters.vec(), keep_uni, keep_paired, row_weight, dual, through, temperature, eps);
  }
  return forward(h, parameters.vec(), keep_uni, keep_paired, row_weight, dual, through, temperature, eps);
}

Gradients backward_cpu(const Tensor& grad_uni, const Tensor& grad_paired, const Tensor& grad_decoded, const Tensor& grad_loss,
                       const Tensor& h, at::TensorList parameters, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
                       const MaybeTensor& row_weight, const Tensor& uni, const Tensor& paired, const Tensor& decoded,
                       at::TensorList saved, bool dual, bool through, double temperature) {
  if (!backward_op.serves(grad_uni)) {
    return backward_op.in_python<Gradients>(grad_uni, grad_paired, grad_decoded, grad_loss, h, parameters.vec(), keep_uni, keep_paired,
                                            row_weight, uni, paired, decoded, saved.vec(), dual, through, temperature);
  }
  return backward(grad_uni, grad_paired, grad_decoded, grad_loss, h, parameters.vec(), keep_uni, keep_paired, row_weight, uni, paired, decoded,
                  saved.vec(), dual, through, temperature);
}

const auto& dispatched() {
  static const auto op = typed_op<decltype(forward_cpu)>("pgm_fast::uni_paired_block");
  return op;
}
const auto& dispatched_backward() {
  static const auto op = typed_op<decltype(backward_cpu)>("pgm_fast::uni_paired_block_backward");
  return op;
}

struct UniPairedBlock : torch::autograd::Function<UniPairedBlock> {
  static constexpr bool is_traceable = true;

  static variable_list forward(AutogradContext* ctx, const Tensor& h, at::TensorList parameters, const MaybeTensor& keep_uni,
                               const MaybeTensor& keep_paired, const MaybeTensor& row_weight, bool dual, bool through,
                               double temperature, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [uni, paired, decoded, loss, saved] =
        dispatched().call(h, parameters, keep_uni, keep_paired, row_weight, dual, through, temperature, eps);
    variable_list kept{h,   keep_uni.value_or(Tensor()), keep_paired.value_or(Tensor()), row_weight.value_or(Tensor()),
                       uni, paired,                      decoded};
    ctx->saved_data["parameters"] = static_cast<int64_t>(parameters.size());
    kept.insert(kept.end(), parameters.begin(), parameters.end());
    kept.insert(kept.end(), saved.begin(), saved.end());
    ctx->save_for_backward(std::move(kept));
    ctx->mark_non_differentiable(saved);
    ctx->saved_data["dual"] = dual;
    ctx->saved_data["through"] = through;
    ctx->saved_data["temperature"] = temperature;
    variable_list result{uni, paired, decoded, loss};
    result.insert(result.end(), saved.begin(), saved.end());
    return result;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto kept = ctx->get_saved_variables();
    const BelowAutogradUnlessRecorded below;
    const auto maybe = [&](int which) { return kept[which].defined() ? MaybeTensor(kept[which]) : MaybeTensor(); };
    const auto count = static_cast<size_t>(ctx->saved_data["parameters"].toInt());
    const at::TensorList rest = at::TensorList(kept).slice(7);
    auto [grad_h, grad_parameters] = dispatched_backward().call(
        grads[0], grads[1], grads[2], grads[3], kept[0], rest.slice(0, count), maybe(1), maybe(2), maybe(3), kept[4], kept[5], kept[6],
        rest.slice(count), ctx->saved_data["dual"].toBool(), ctx->saved_data["through"].toBool(),
        ctx->saved_data["temperature"].toDouble());
    variable_list result{grad_h};
    result.insert(result.end(), grad_parameters.begin(), grad_parameters.end());
    result.resize(result.size() + 7);  // what follows the parameters has no gradient
    return result;
  }
};

Results forward_autograd(const Tensor& h, at::TensorList parameters, const MaybeTensor& keep_uni, const MaybeTensor& keep_paired,
                         const MaybeTensor& row_weight, bool dual, bool through, double temperature, double eps) {
  bool records = recorded(h);
  for (const Tensor& parameter : parameters) records = records || recorded(parameter);
  if (!records) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatched().call(h, parameters, keep_uni, keep_paired, row_weight, dual, through, temperature, eps);
  }
  auto made = UniPairedBlock::apply(h, parameters, keep_uni, keep_paired, row_weight, dual, through, temperature, eps);
  return {made[0], made[1], made[2], made[3], Tensors(made.begin() + 4, made.end())};
}

}  // namespace

void bind_uni_paired_block(py::module_& m) { bind_op<forward, backward>(m, "uni_paired_block"); }

void implement_uni_paired_block(torch::Library& cpu, torch::Library& autograd) {
  implement_op<forward_cpu, backward_cpu, forward_autograd>(cpu, autograd, "uni_paired_block");
}

}  // namespace pgm_fast::host
