// A multi-rate optimizer step: threads take chunks of tensors, each is read and written once.
#include "../common/multi_rate.h"

#include "kernels.h"
#include "matrix.h"

namespace pgm_fast::cpu {
namespace {

using multi_rate::at;
using multi_rate::Chunk;
using multi_rate::GroupRow;
using multi_rate::Launch;
using multi_rate::Master;
using multi_rate::TensorRow;

// Elements that are converted from and to 16 bits at a time: four buffers of them fit the first cache.
constexpr int64_t kBlock = 1024;
// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;
// A thread takes this many chunks at a time: chunks differ in size.
constexpr int kChunksAtATime = 4;

int64_t size_of(multi_rate::Dtype dtype) {
  switch (dtype) {
    case multi_rate::Dtype::float64:
      return 8;
    case multi_rate::Dtype::float32:
      return 4;
    default:
      return 2;
  }
}

void* offset(uint64_t address, int64_t elements, int64_t size) { return at<char>(address) + elements * size; }

Matrix matrix(void* data, multi_rate::Dtype dtype, int64_t n) { return {data, static_cast<Dtype>(dtype), n}; }

// n elements as T: themselves where they are stored so, else converted into buffer.
const float* values(void* data, multi_rate::Dtype dtype, int64_t n, float* buffer) {
  return read(matrix(data, dtype, n), 0, buffer);
}
const double* values(void* data, multi_rate::Dtype, int64_t, double*) { return static_cast<const double*>(data); }

template <class Body>
void for_each_chunk(const Launch& launch, int threads, Body&& body) {
  const int64_t useful = std::max<int64_t>(1, launch.num_elements / kElementsPerThread);
  const int parts = static_cast<int>(
      std::min<int64_t>({static_cast<int64_t>(threads), useful, std::max<int64_t>(launch.num_chunks, 1)}));
  if (parts == 1) {
    for (int64_t c = 0; c < launch.num_chunks; ++c) body(c);
    return;
  }
#pragma omp parallel for num_threads(parts) schedule(dynamic, kChunksAtATime)
  for (int64_t c = 0; c < launch.num_chunks; ++c) body(c);
}

// ---- update ----

// Where the elements of one block are; pointers of state may be null.
template <class T>
struct Block {
  T* p;
  const T* g;
  T* m;
  T* v;
  T* vmax;
  int64_t n;
};

template <class V, class T>
multi_rate::AdamW<V> spread(const multi_rate::AdamW<T>& s) {
  return {V::set(s.factor), V::set(s.decay),           V::set(s.step_size), V::set(s.one_minus_beta1),
          V::set(s.beta2),  V::set(s.one_minus_beta2), V::set(s.unbias),    V::set(s.eps)};
}
template <class V, class T>
multi_rate::Sgd<V> spread(const multi_rate::Sgd<T>& s) {
  return {V::set(s.factor), V::set(s.weight_decay), V::set(s.momentum), V::set(s.one_minus_dampening), V::set(s.rate)};
}

template <class V, class T>
void update(const Block<T>& b, const multi_rate::AdamW<V>& s, int64_t) {
  if (b.vmax != nullptr) {
    for_each_vector<V>(b.n, [&](int64_t k, auto part) {
      V p = part.load(b.p + k), m = part.load(b.m + k), v = part.load(b.v + k), vmax = part.load(b.vmax + k);
      multi_rate::amsgrad_update(p, part.load(b.g + k), m, v, vmax, s);
      part.store(p, b.p + k);
      part.store(m, b.m + k);
      part.store(v, b.v + k);
      part.store(vmax, b.vmax + k);
    });
    return;
  }
  for_each_vector<V>(b.n, [&](int64_t k, auto part) {
    V p = part.load(b.p + k), m = part.load(b.m + k), v = part.load(b.v + k);
    multi_rate::adamw_update(p, part.load(b.g + k), m, v, s);
    part.store(p, b.p + k);
    part.store(m, b.m + k);
    part.store(v, b.v + k);
  });
}

template <class V, class T>
void update(const Block<T>& b, const multi_rate::Sgd<V>& s, int64_t flags) {
  if (b.m == nullptr) {
    for_each_vector<V>(b.n, [&](int64_t k, auto part) {
      V p = part.load(b.p + k);
      multi_rate::sgd_update(p, part.load(b.g + k), s);
      part.store(p, b.p + k);
    });
    return;
  }
  const bool nesterov = (flags & multi_rate::kNesterov) != 0;
  for_each_vector<V>(b.n, [&](int64_t k, auto part) {
    V p = part.load(b.p + k), m = part.load(b.m + k);
    multi_rate::momentum_update(p, part.load(b.g + k), m, s, nesterov);
    part.store(p, b.p + k);
    part.store(m, b.m + k);
  });
}

void load_parameter(const Launch& launch, void* data, const void* master, int64_t n, float* to) {
  if (launch.master == Master::remainder) {
    const auto* high = static_cast<const uint16_t*>(data);
    const auto* low = static_cast<const int16_t*>(master);
    for (int64_t k = 0; k < n; ++k) to[k] = multi_rate::join_remainder(high[k], low[k]);
  } else {
    to_float(matrix(data, launch.param_dtype, n), 0, to);
  }
}

void store_parameter(const Launch& launch, const float* from, void* data, void* master, int64_t n) {
  if (launch.master == Master::remainder) {
    auto* high = static_cast<uint16_t*>(data);
    auto* low = static_cast<int16_t*>(master);
    for (int64_t k = 0; k < n; ++k) multi_rate::split_remainder(from[k], high[k], low[k]);
  } else {
    from_float(from, matrix(data, launch.param_dtype, n), 0);
  }
}

// Elements [start, start + n) of a tensor, T = float, in blocks where something has to be converted.
template <class S>
void update_part(const Launch& launch, const TensorRow& row, uint64_t gradient, int64_t start, int64_t n,
                 const S& scalars) {
  const int64_t param_size = size_of(launch.param_dtype), gradient_size = size_of(launch.gradient_dtype);
  const bool direct = launch.param_dtype == multi_rate::Dtype::float32;
  const int64_t block = direct && gradient_size == 4 ? n : kBlock;
  const auto vectors = spread<Simd>(scalars);
  float parameters[kBlock], gradients[kBlock];
  for (int64_t k = start; k < start + n; k += block) {
    const int64_t count = std::min(block, start + n - k);
    void* stored = offset(row.param, k, param_size);
    float* p = static_cast<float*>(stored);
    void* master = nullptr;
    if (launch.master == Master::float32) {
      p = at<float>(row.master) + k;
    } else if (!direct) {
      p = parameters;
      if (row.master != 0) master = at<int16_t>(row.master) + k;
      load_parameter(launch, stored, master, count, p);
    }
    const float* g = values(offset(gradient, k, gradient_size), launch.gradient_dtype, count, gradients);
    const auto state = [&](uint64_t address) { return address == 0 ? nullptr : at<float>(address) + k; };
    update<Simd>(Block<float>{p, g, state(row.exp_avg), state(row.exp_avg_sq), state(row.max_exp_avg_sq), count},
                 vectors, row.flags);
    if (!direct) store_parameter(launch, p, stored, master, count);
  }
}

template <class S>
void update_part_double(const TensorRow& row, uint64_t gradient, int64_t start, int64_t n, const S& scalars) {
  const auto state = [&](uint64_t address) { return address == 0 ? nullptr : at<double>(address) + start; };
  const Block<double> block{at<double>(row.param) + start, at<const double>(gradient) + start, state(row.exp_avg),
                            state(row.exp_avg_sq),         state(row.max_exp_avg_sq),          n};
  update<Lane<double>>(block, spread<Lane<double>>(scalars), row.flags);
}

template <class T>
void step(const Launch& launch, int threads) {
  const auto* groups = static_cast<const GroupRow<T>*>(launch.groups);
  for_each_chunk(launch, threads, [&](int64_t c) {
    const Chunk& chunk = launch.chunks[c];
    const TensorRow& row = launch.tensors[chunk.tensor];
    const GroupRow<T>& group = groups[row.group];
    const uint64_t gradient = launch.gradients[chunk.tensor];
    if (gradient == 0 || !multi_rate::is_due(row, group)) return;
    const T factor = multi_rate::gradient_factor(launch, group, row.group);
    const int64_t n = std::min(launch.chunk_size, row.numel - chunk.start);
    const auto run = [&](const auto& scalars) {
      if constexpr (sizeof(T) == sizeof(double)) {
        update_part_double(row, gradient, chunk.start, n, scalars);
      } else {
        update_part(launch, row, gradient, chunk.start, n, scalars);
      }
    };
    if (launch.algorithm == multi_rate::Algorithm::adamw) {
      run(multi_rate::adamw_scalars(row, group, factor));
    } else {
      run(multi_rate::sgd_scalars(row, group, factor));
    }
  });
  for (int64_t t = 0; t < launch.num_tensors; ++t) {
    if (launch.gradients[t] != 0) multi_rate::advance(launch.tensors[t], groups[launch.tensors[t].group]);
  }
}

// ---- sums of squares ----

double sum_of_squares(const double* x, int64_t n) {
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    for (int lane = 0; lane < 4; ++lane) sum[lane] += x[k + lane] * x[k + lane];
  }
  for (; k < n; ++k) sum[0] += x[k] * x[k];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// A block of squares in float, which can overflow where the sum in double does not.
double sum_of_squares(const float* x, int64_t n) {
  Simd even = Simd::set(0.0f), odd = Simd::set(0.0f);
  int64_t k = 0;
  for (; k + 2 * Simd::width <= n; k += 2 * Simd::width) {
    const Simd a = Simd::load(x + k), b = Simd::load(x + k + Simd::width);
    even = multiply_add(a, a, even);
    odd = multiply_add(b, b, odd);
  }
  for (; k < n; k += Simd::width) {
    const Simd a = k + Simd::width <= n ? Simd::load(x + k) : Simd::load(x + k, n - k);
    even = multiply_add(a, a, even);
  }
  const double sum = (even + odd).sum();
  if (sum - sum == 0.0) return sum;
  double exact = 0.0;
  for (k = 0; k < n; ++k) exact += static_cast<double>(x[k]) * x[k];
  return exact;
}

template <class T>
double chunk_squares(const Launch& launch, const Chunk& chunk) {
  if (launch.gradients[chunk.tensor] == 0) return 0.0;
  const int64_t size = size_of(launch.gradient_dtype);
  const int64_t end = std::min(chunk.start + launch.chunk_size, launch.tensors[chunk.tensor].numel);
  T buffer[kBlock];
  double sum = 0.0;
  for (int64_t k = chunk.start; k < end; k += kBlock) {
    const int64_t n = std::min(kBlock, end - k);
    sum += sum_of_squares(values(offset(launch.gradients[chunk.tensor], k, size), launch.gradient_dtype, n, buffer), n);
  }
  return sum;
}

}  // namespace

void multi_rate_squares(const Launch& launch, double* partials, double* sums, int threads) {
  for_each_chunk(launch, threads, [&](int64_t c) {
    partials[c] = launch.gradient_dtype == multi_rate::Dtype::float64 ? chunk_squares<double>(launch, launch.chunks[c])
                                                                      : chunk_squares<float>(launch, launch.chunks[c]);
  });
  // in the order of the table, whoever computed them
  std::fill(sums, sums + launch.num_groups + 1, 0.0);
  for (int64_t c = 0; c < launch.num_chunks; ++c) sums[launch.tensors[launch.chunks[c].tensor].group] += partials[c];
  for (int64_t group = 0; group < launch.num_groups; ++group) sums[launch.num_groups] += sums[group];
}

void multi_rate_step(const Launch& launch, int threads) {
  if (multi_rate::is_skipped(launch)) {
    if (launch.skipped != nullptr) *launch.skipped += 1.0f;
  } else if (launch.param_dtype == multi_rate::Dtype::float64) {
    step<double>(launch, threads);
  } else {
    step<float>(launch, threads);
  }
}

}  // namespace pgm_fast::cpu
