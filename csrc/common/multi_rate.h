// One step of many tensors at many rates: the tables that say what to update, and the arithmetic of the update. The one
// source of truth for CPU vectors and CUDA threads; kernels/multi_rate_rules.py follows it for Triton programs.
//
// V is anything with + - * /, multiply_add, square_root and larger: float, double, or a CPU vector of them.
//   AdamW (Loshchilov & Hutter 2019; amsgrad: Reddi et al. 2018), t = steps with this one, f = gradient_factor:
//     g = f grad;  m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g^2;  s = amsgrad ? (vmax = max(vmax, v)) : v
//     p = (1 - lr wd) p - lr / (1 - b1^t) m / (sqrt(s) / sqrt(1 - b2^t) + eps)
//   SGD (Sutskever et al. 2013 as torch.optim.SGD writes it):
//     g = f grad + wd p;  b = first ? g : mu b + (1 - damp) g;  p -= lr (momentum ? (nesterov ? g + mu b : b) : g)
//
// A launch reads `step` in every chunk and must raise it once: whoever finishes last (the last block; on the CPU the
// caller) calls advance() for every tensor. Until then nobody writes it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PGM_FAST_HD __host__ __device__ __forceinline__
#else
#define PGM_FAST_HD inline
#endif

namespace pgm_fast::multi_rate {

// ---- tables ----

enum class Dtype : int64_t { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };  // as common/matrix.h
// What holds the precise parameter of a 16-bit one: nothing, a float, or the 16 bits that a bfloat16 lacks of a float.
enum class Master : int64_t { none = 0, float32 = 1, remainder = 2 };
enum class Algorithm : int64_t { adamw = 0, sgd = 1 };
enum class Clip : int64_t { none = 0, global = 1, group = 2 };

constexpr int64_t kAmsgrad = 1;
constexpr int64_t kNesterov = 2;
constexpr int64_t kRateIsDouble = 4;  // the rate at TensorRow::rate is a double, else a float

// One tensor that has a gradient. Addresses are of device memory; 0 where there is none. Every word is 8 bytes.
struct TensorRow {
  uint64_t param;
  uint64_t exp_avg;         // first moment; SGD: momentum_buffer, 0 without momentum
  uint64_t exp_avg_sq;      // AdamW only
  uint64_t max_exp_avg_sq;  // with kAmsgrad only
  uint64_t master;          // of Launch::master
  uint64_t step;            // float: updates so far; 0 for SGD without momentum
  uint64_t waited;          // float: steps since the last update, for groups that update every k-th step only
  uint64_t rate;            // the learning rate where it is a tensor on this device, else 0 and the group's holds
  int64_t numel;
  int64_t group;  // row of the groups' table
  int64_t flags;
};
static_assert(sizeof(TensorRow) == 11 * 8, "launch.py and multi_rate_tables.py count eleven words");

// A part of one tensor: elements [start, start + Launch::chunk_size), or to the end.
struct Chunk {
  int64_t tensor;
  int64_t start;
};

// Hyper-parameters of a group in the type T that the launch computes in: double for double parameters, else float.
template <class T>
struct GroupRow {
  T rate;
  T weight_decay;
  T one_minus_beta1;
  T beta2;
  T one_minus_beta2;
  T log_beta1;  // ln b from double: 1 - b^t is -expm1(t ln b)
  T log_beta2;
  T eps;
  T momentum;
  T one_minus_dampening;
  T sign;          // of the gradient: -1 to maximize
  T max_norm;      // infinity: not clipped
  T update_every;  // a whole number >= 1
};
static_assert(sizeof(GroupRow<float>) == 13 * 4, "launch.py and multi_rate_tables.py count thirteen numbers");

// What one launch takes. Tensors of one launch share dtypes and device.
struct Launch {
  const TensorRow* tensors;
  // of each tensor, same strides as the parameter and dense; 0: none, the tensor stays as it is
  const uint64_t* gradients;
  const Chunk* chunks;
  const void* groups;  // GroupRow<T>
  int64_t num_tensors;
  int64_t num_chunks;
  int64_t num_groups;
  int64_t num_elements;  // of all chunks
  int64_t chunk_size;    // a power of two
  Algorithm algorithm;
  Dtype param_dtype;
  Dtype gradient_dtype;  // param_dtype or float32
  Master master;
  Clip clip;
  int64_t check_finite;     // whether a sum of squares that is not finite skips the step
  const float* grad_scale;  // gradients are this times too large; nullptr: they are not
  const float* found_inf;   // a value other than 0 skips the step; nullptr: never
  // of the squares of all gradients as they are in memory: of each group, then of all; nullptr: unknown
  const double* sums;
  float* skipped;  // raised by a step that is skipped; nullptr: not counted here
};

// ---- scalars of a chunk ----

PGM_FAST_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
PGM_FAST_HD double multiply_add(double a, double b, double c) { return fma(a, b, c); }
PGM_FAST_HD float square_root(float x) { return sqrtf(x); }
PGM_FAST_HD double square_root(double x) { return sqrt(x); }
// NaN in either stays, as torch.maximum has it
PGM_FAST_HD float larger(float a, float b) { return a > b || a != a ? a : b; }
PGM_FAST_HD double larger(double a, double b) { return a > b || a != a ? a : b; }

// 1 - beta^t. powf(beta, t) in its place is off by up to 2e-4.
PGM_FAST_HD float bias_correction(float log_beta, float t) { return -expm1f(t * log_beta); }
PGM_FAST_HD double bias_correction(double log_beta, double t) { return -expm1(t * log_beta); }

template <class P>
PGM_FAST_HD P* at(uint64_t address) {
  return reinterpret_cast<P*>(static_cast<uintptr_t>(address));
}

// Whether this step is skipped by all tensors.
PGM_FAST_HD bool is_skipped(const Launch& launch) {
  if (launch.found_inf != nullptr && *launch.found_inf != 0.0f) return true;
  // infinity or NaN minus itself is NaN
  return launch.check_finite && launch.sums[launch.num_groups] - launch.sums[launch.num_groups] != 0.0;
}

// Whether this step, if it is not skipped, updates the tensor: each update_every-th does.
template <class T>
PGM_FAST_HD bool is_due(const TensorRow& tensor, const GroupRow<T>& group) {
  return tensor.waited == 0 || T(*at<const float>(tensor.waited)) + T(1) >= group.update_every;
}

// min(1, max_norm / (norm + 1e-6)), the rule of torch.nn.utils.clip_grad_norm_, from a sum of squares of scaled
// gradients.
PGM_FAST_HD double clip_coefficient(double sum, double max_norm, double scale) {
  const double coefficient = max_norm / (sqrt(sum) / scale + 1e-6);
  return coefficient < 1.0 ? coefficient : 1.0;
}

// What a gradient is multiplied by as it is loaded: sign, clipping and the scale of mixed precision in one.
template <class T>
PGM_FAST_HD T gradient_factor(const Launch& launch, const GroupRow<T>& group, int64_t index) {
  const double scale = launch.grad_scale == nullptr ? 1.0 : static_cast<double>(*launch.grad_scale);
  double coefficient = 1.0;
  if (launch.clip != Clip::none) {
    const int64_t which = launch.clip == Clip::global ? launch.num_groups : index;
    coefficient = clip_coefficient(launch.sums[which], static_cast<double>(group.max_norm), scale);
  }
  return group.sign * static_cast<T>(coefficient / scale);
}

template <class T>
PGM_FAST_HD T learning_rate(const TensorRow& tensor, const GroupRow<T>& group) {
  if (tensor.rate == 0) return group.rate;
  return tensor.flags & kRateIsDouble ? static_cast<T>(*at<const double>(tensor.rate))
                                      : static_cast<T>(*at<const float>(tensor.rate));
}

// Numbers that all elements of a tensor share.
template <class T>
struct AdamW {
  T factor, decay, step_size, one_minus_beta1, beta2, one_minus_beta2, unbias, eps;
};
template <class T>
PGM_FAST_HD AdamW<T> adamw_scalars(const TensorRow& tensor, const GroupRow<T>& group, T factor) {
  const T rate = learning_rate(tensor, group), t = static_cast<T>(*at<const float>(tensor.step) + 1.0f);
  AdamW<T> s;
  s.factor = factor;
  s.decay = T(1) - rate * group.weight_decay;
  s.step_size = rate / bias_correction(group.log_beta1, t);
  s.one_minus_beta1 = group.one_minus_beta1;
  s.beta2 = group.beta2;
  s.one_minus_beta2 = group.one_minus_beta2;
  s.unbias = T(1) / square_root(bias_correction(group.log_beta2, t));
  s.eps = group.eps;
  return s;
}

template <class T>
struct Sgd {
  T factor, weight_decay, momentum, one_minus_dampening, rate;
};
template <class T>
PGM_FAST_HD Sgd<T> sgd_scalars(const TensorRow& tensor, const GroupRow<T>& group, T factor) {
  Sgd<T> s;
  s.factor = factor;
  s.weight_decay = group.weight_decay;
  // the buffer is 0 before the first update, which takes the gradient whole
  const bool first = tensor.step != 0 && *at<const float>(tensor.step) == 0.0f;
  s.momentum = group.momentum;
  s.one_minus_dampening = first ? T(1) : group.one_minus_dampening;
  s.rate = learning_rate(tensor, group);
  return s;
}

// ---- one element, or a vector of them ----

template <class V>
PGM_FAST_HD void adamw_update(V& p, V grad, V& m, V& v, const AdamW<V>& s) {
  const V g = s.factor * grad;
  m = multiply_add(s.one_minus_beta1, g - m, m);
  v = multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
  p = s.decay * p - s.step_size * m / multiply_add(square_root(v), s.unbias, s.eps);
}

template <class V>
PGM_FAST_HD void amsgrad_update(V& p, V grad, V& m, V& v, V& vmax, const AdamW<V>& s) {
  const V g = s.factor * grad;
  m = multiply_add(s.one_minus_beta1, g - m, m);
  v = multiply_add(s.one_minus_beta2 * g, g, s.beta2 * v);
  vmax = larger(vmax, v);
  p = s.decay * p - s.step_size * m / multiply_add(square_root(vmax), s.unbias, s.eps);
}

template <class V>
PGM_FAST_HD void sgd_update(V& p, V grad, const Sgd<V>& s) {
  const V g = multiply_add(s.weight_decay, p, s.factor * grad);
  p = p - s.rate * g;
}

template <class V>
PGM_FAST_HD void momentum_update(V& p, V grad, V& b, const Sgd<V>& s, bool nesterov) {
  const V g = multiply_add(s.weight_decay, p, s.factor * grad);
  b = multiply_add(s.momentum, b, s.one_minus_dampening * g);
  p = p - s.rate * (nesterov ? multiply_add(s.momentum, b, g) : b);
}

// Counts this step of one tensor; once per tensor, after every chunk has read.
template <class T>
PGM_FAST_HD void advance(const TensorRow& tensor, const GroupRow<T>& group) {
  const bool due = is_due(tensor, group);
  if (tensor.waited != 0) *at<float>(tensor.waited) = due ? 0.0f : *at<float>(tensor.waited) + 1.0f;
  if (due && tensor.step != 0) *at<float>(tensor.step) += 1.0f;
}

// ---- 16-bit storage ----

PGM_FAST_HD uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}
PGM_FAST_HD float value_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

PGM_FAST_HD float from_bfloat16(uint16_t x) { return value_of(static_cast<uint32_t>(x) << 16); }
// to the nearest, ties to even
PGM_FAST_HD uint16_t to_bfloat16(float x) {
  const uint32_t u = bits_of(x);
  return x == x ? static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16) : uint16_t{0x7fc0};
}

// A float as a bfloat16, its nearest with ties away from zero, and the signed 16-bit distance of their bit patterns:
// together they are the float, bit by bit. Ties to even would need one distance more than 16 bits hold.
PGM_FAST_HD float join_remainder(uint16_t high, int16_t low) {
  return value_of((static_cast<uint32_t>(high) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}
PGM_FAST_HD void split_remainder(float x, uint16_t& high, int16_t& low) {
  const uint32_t u = x == x ? bits_of(x) : 0x7fc00000u;  // a carry out of NaN's mantissa would make it -0
  high = static_cast<uint16_t>((u + 0x8000u) >> 16);
  low = static_cast<int16_t>(static_cast<uint16_t>(u & 0xffffu));
}

}  // namespace pgm_fast::multi_rate
