// A multi-rate optimizer step and the sums of squares it clips by: one block per chunk of a tensor, whatever the
// tensor, its group and its rate. Formulas and tables: common/multi_rate.h.
//
// Mutated: parameters, their masters and their state; step, waited and skipped, by the block that finishes last;
// `finished`, which is 0 before and after every launch.
#include "../common/multi_rate.h"

#include <limits>

#include "elements.cuh"
#include "kernels.h"
#include "scans.cuh"

namespace pgm_fast::cuda {
namespace {

using multi_rate::Algorithm;
using multi_rate::at;
using multi_rate::Chunk;
using multi_rate::GroupRow;
using multi_rate::Launch;
using multi_rate::Master;
using multi_rate::TensorRow;

constexpr int kThreads = 256;
// Elements of a thread at a time: 16 bytes of the state, which is most of the traffic; 8 bytes of a 16-bit parameter
// beside it, so that a warp's accesses to either have no gap.
template <class T>
constexpr int kAtATime = 16 / sizeof(T);

// N neighbours in one access. The addresses come as numbers, so the compiler has to be told that they are of device
// memory.
template <class S, int N>
struct alignas(N * sizeof(S)) Pack {
  S element[N];
};
template <int N, class S>
__device__ __forceinline__ Pack<S, N> load_pack(const S* from) {
  __builtin_assume(__isGlobal(from));
  return *reinterpret_cast<const Pack<S, N>*>(from);
}
template <int N, class S>
__device__ __forceinline__ void store_pack(const Pack<S, N>& pack, S* to) {
  __builtin_assume(__isGlobal(to));
  *reinterpret_cast<Pack<S, N>*>(to) = pack;
}

__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widened(__half x) { return __half2float(x); }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }
__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& to) { to = __float2half_rn(x); }

template <int N, class T, class S>
__device__ __forceinline__ void load_values(const S* from, T (&x)[N]) {
  const Pack<S, N> pack = load_pack<N>(from);
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = widened(pack.element[j]);
}
template <int N, class T, class S>
__device__ __forceinline__ void store_values(const T (&x)[N], S* to) {
  Pack<S, N> pack;
#pragma unroll
  for (int j = 0; j < N; ++j) narrow(x[j], pack.element[j]);
  store_pack<N>(pack, to);
}

// Parameters in P that hold all there is.
template <class T, class P, Master kMaster>
struct Parameters {
  P* p;
  __device__ __forceinline__ Parameters(const TensorRow& row, int64_t start) : p(at<P>(row.param) + start) {}

  template <int N>
  __device__ __forceinline__ void load(int k, T (&x)[N]) const {
    load_values(p + k, x);
  }
  template <int N>
  __device__ __forceinline__ void store(const T (&x)[N], int k) const {
    store_values(x, p + k);
  }
};
// 16-bit parameters beside a float of each.
template <class P>
struct Parameters<float, P, Master::float32> {
  P* p;
  float* master;
  __device__ __forceinline__ Parameters(const TensorRow& row, int64_t start)
      : p(at<P>(row.param) + start), master(at<float>(row.master) + start) {}

  template <int N>
  __device__ __forceinline__ void load(int k, float (&x)[N]) const {
    load_values(master + k, x);
  }
  template <int N>
  __device__ __forceinline__ void store(const float (&x)[N], int k) const {
    store_values(x, master + k);
    store_values(x, p + k);
  }
};
// bfloat16 parameters beside the 16 bits that they lack of a float.
template <class P>
struct Parameters<float, P, Master::remainder> {
  uint16_t* p;
  int16_t* rest;
  __device__ __forceinline__ Parameters(const TensorRow& row, int64_t start)
      : p(at<uint16_t>(row.param) + start), rest(at<int16_t>(row.master) + start) {}

  template <int N>
  __device__ __forceinline__ void load(int k, float (&x)[N]) const {
    const Pack<uint16_t, N> high = load_pack<N>(p + k);
    const Pack<int16_t, N> low = load_pack<N>(rest + k);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] = multi_rate::join_remainder(high.element[j], low.element[j]);
  }
  template <int N>
  __device__ __forceinline__ void store(const float (&x)[N], int k) const {
    Pack<uint16_t, N> high;
    Pack<int16_t, N> low;
#pragma unroll
    for (int j = 0; j < N; ++j) multi_rate::split_remainder(x[j], high.element[j], low.element[j]);
    store_pack<N>(high, p + k);
    store_pack<N>(low, rest + k);
  }
};

// update<N>(k) computes elements k to k + N of a chunk.
template <class T, class P, class G, Master kMaster>
struct AdamwChunk {
  using Scalars = multi_rate::AdamW<T>;
  Parameters<T, P, kMaster> parameters;
  const G* g;
  T *m, *v, *vmax;
  const Scalars& scalars;

  __device__ __forceinline__ AdamwChunk(const TensorRow& row, uint64_t gradient, int64_t start, const Scalars& s)
      : parameters(row, start),
        g(at<const G>(gradient) + start),
        m(at<T>(row.exp_avg) + start),
        v(at<T>(row.exp_avg_sq) + start),
        vmax((row.flags & multi_rate::kAmsgrad) == 0 ? nullptr : at<T>(row.max_exp_avg_sq) + start),
        scalars(s) {}

  static __device__ Scalars prepare(const TensorRow& row, const GroupRow<T>& group, T factor) {
    return multi_rate::adamw_scalars(row, group, factor);
  }

  template <int N>
  __device__ __forceinline__ void update(int k) const {
    T p[N], grad[N], first[N], second[N];
    parameters.load(k, p);
    load_values(g + k, grad);
    load_values(m + k, first);
    load_values(v + k, second);
    if (vmax != nullptr) {
      T largest[N];
      load_values(vmax + k, largest);
#pragma unroll
      for (int j = 0; j < N; ++j) multi_rate::amsgrad_update(p[j], grad[j], first[j], second[j], largest[j], scalars);
      store_values(largest, vmax + k);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) multi_rate::adamw_update(p[j], grad[j], first[j], second[j], scalars);
    }
    parameters.store(p, k);
    store_values(first, m + k);
    store_values(second, v + k);
  }
};

template <class T, class P, class G, Master kMaster>
struct SgdChunk {
  using Scalars = multi_rate::Sgd<T>;
  Parameters<T, P, kMaster> parameters;
  const G* g;
  T* buffer;
  bool nesterov;
  const Scalars& scalars;

  __device__ __forceinline__ SgdChunk(const TensorRow& row, uint64_t gradient, int64_t start, const Scalars& s)
      : parameters(row, start),
        g(at<const G>(gradient) + start),
        buffer(row.exp_avg == 0 ? nullptr : at<T>(row.exp_avg) + start),
        nesterov((row.flags & multi_rate::kNesterov) != 0),
        scalars(s) {}

  static __device__ Scalars prepare(const TensorRow& row, const GroupRow<T>& group, T factor) {
    return multi_rate::sgd_scalars(row, group, factor);
  }

  template <int N>
  __device__ __forceinline__ void update(int k) const {
    T p[N], grad[N];
    parameters.load(k, p);
    load_values(g + k, grad);
    if (buffer != nullptr) {
      T momentum[N];
      load_values(buffer + k, momentum);
#pragma unroll
      for (int j = 0; j < N; ++j) multi_rate::momentum_update(p[j], grad[j], momentum[j], scalars, nesterov);
      store_values(momentum, buffer + k);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) multi_rate::sgd_update(p[j], grad[j], scalars);
    }
    parameters.store(p, k);
  }
};

__device__ __forceinline__ bool accessible_in_packs(const TensorRow& row, uint64_t gradient) {
  const uint64_t addresses = row.param | gradient | row.exp_avg | row.exp_avg_sq | row.max_exp_avg_sq | row.master;
  return addresses % 16 == 0;
}

// Whether this is the block of the grid that finishes last; all its threads get the same answer, and see what the
// others wrote.
__device__ __forceinline__ bool finishes_last(unsigned* finished) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (last) *finished = 0;
  }
  __syncthreads();
  return last;
}

template <template <class, class, class, Master> class Update, class T, class P, class G, Master kMaster>
__global__ void __launch_bounds__(kThreads)
    multi_rate_update(const __grid_constant__ Launch launch, unsigned* finished) {
  using Block = Update<T, P, G, kMaster>;
  __shared__ typename Block::Scalars scalars;
  __shared__ bool skipped, due;
  const auto* groups = static_cast<const GroupRow<T>*>(launch.groups);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) skipped = multi_rate::is_skipped(launch);
  __syncthreads();
  for (int64_t c = blockIdx.x; c < launch.num_chunks && !skipped; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const TensorRow& row = launch.tensors[chunk.tensor];
    if (thread == 0) {
      const GroupRow<T>& group = groups[row.group];
      due = launch.gradients[chunk.tensor] != 0 && multi_rate::is_due(row, group);
      if (due) scalars = Block::prepare(row, group, multi_rate::gradient_factor(launch, group, row.group));
    }
    __syncthreads();
    if (due) {
      const uint64_t gradient = launch.gradients[chunk.tensor];
      const Block block(row, gradient, chunk.start, scalars);
      const int64_t rest = row.numel - chunk.start;
      const int n = static_cast<int>(rest < launch.chunk_size ? rest : launch.chunk_size);
      constexpr int kN = kAtATime<T>;
      const int whole = accessible_in_packs(row, gradient) ? n / kN * kN : 0;
      for (int k = thread * kN; k < whole; k += kThreads * kN) block.template update<kN>(k);
      for (int k = whole + thread; k < n; k += kThreads) block.template update<1>(k);
    }
    __syncthreads();
  }
  // every block has read the counters of steps
  if (!finishes_last(finished)) return;
  if (skipped) {
    if (thread == 0 && launch.skipped != nullptr) *launch.skipped += 1.0f;
    return;
  }
// unrolled, this loop would take registers from the one above
#pragma unroll 1
  for (int64_t t = thread; t < launch.num_tensors; t += kThreads) {
    const TensorRow& row = launch.tensors[t];
    if (launch.gradients[t] != 0) multi_rate::advance(row, groups[row.group]);
  }
}

// Sum over the threads of a block, in the same order every time; thread 0 has it.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double of_warp[kThreads / kWarp];
  x = lanes_sum(x);
  if (lane_index() == 0) of_warp[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) sum += of_warp[w];
  return sum;
}

// partials[c]: the sum of the squares of a chunk's gradients.
template <class T, class G>
__global__ void __launch_bounds__(kThreads)
    multi_rate_chunk_squares(const __grid_constant__ Launch launch, double* partials) {
  for (int64_t c = blockIdx.x; c < launch.num_chunks; c += gridDim.x) {
    const Chunk chunk = launch.chunks[c];
    const int64_t rest = launch.tensors[chunk.tensor].numel - chunk.start;
    const uint64_t gradient = launch.gradients[chunk.tensor];
    const int n = gradient == 0 ? 0 : static_cast<int>(rest < launch.chunk_size ? rest : launch.chunk_size);
    const G* g = at<const G>(gradient) + chunk.start;
    constexpr int kN = 16 / sizeof(G);
    const int whole = gradient % 16 == 0 ? n / kN * kN : 0, thread = static_cast<int>(threadIdx.x);
    T sum = 0;
    for (int k = thread * kN; k < whole; k += kThreads * kN) {
      T x[kN];
      load_values(g + k, x);
#pragma unroll
      for (int j = 0; j < kN; ++j) sum = multi_rate::multiply_add(x[j], x[j], sum);
    }
    for (int k = whole + thread; k < n; k += kThreads)
      sum = multi_rate::multiply_add(widened(g[k]), widened(g[k]), sum);
    double exact = sum;
    if (!(sum - sum == T(0))) {
      // the squares overflow in float, and perhaps not in double
      exact = 0;
      for (int k = thread * kN; k < whole; k += kThreads * kN) {
        for (int j = 0; j < kN; ++j)
          exact += static_cast<double>(widened(g[k + j])) * static_cast<double>(widened(g[k + j]));
      }
      for (int k = whole + thread; k < n; k += kThreads)
        exact += static_cast<double>(widened(g[k])) * static_cast<double>(widened(g[k]));
    }
    exact = block_sum(exact);
    if (thread == 0) partials[c] = exact;
    __syncthreads();
  }
}

// sums[b]: of the partials of group b; the last block: of all.
__global__ void __launch_bounds__(kThreads)
    multi_rate_group_squares(const __grid_constant__ Launch launch, const double* partials, double* sums) {
  const int64_t group = blockIdx.x;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < launch.num_chunks; c += kThreads) {
    if (group == launch.num_groups || launch.tensors[launch.chunks[c].tensor].group == group) sum += partials[c];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[group] = sum;
}

unsigned grid_of(int64_t blocks) {
  return static_cast<unsigned>(blocks < std::numeric_limits<int>::max() ? blocks : std::numeric_limits<int>::max());
}

template <class T, class P, class G, Master kMaster>
cudaError_t launch_update(const Launch& launch, unsigned* finished, cudaStream_t stream) {
  const unsigned grid = grid_of(launch.num_chunks > 0 ? launch.num_chunks : 1);
  if (launch.algorithm == Algorithm::adamw) {
    multi_rate_update<AdamwChunk, T, P, G, kMaster><<<grid, kThreads, 0, stream>>>(launch, finished);
  } else {
    multi_rate_update<SgdChunk, T, P, G, kMaster><<<grid, kThreads, 0, stream>>>(launch, finished);
  }
  return cudaGetLastError();
}

template <class P, Master kMaster>
cudaError_t launch_sixteen_bit(const Launch& launch, unsigned* finished, cudaStream_t stream) {
  if (launch.gradient_dtype == multi_rate::Dtype::float32)
    return launch_update<float, P, float, kMaster>(launch, finished, stream);
  return launch_update<float, P, P, kMaster>(launch, finished, stream);
}

template <class T, class G>
cudaError_t launch_chunk_squares(const Launch& launch, double* partials, cudaStream_t stream) {
  multi_rate_chunk_squares<T, G><<<grid_of(launch.num_chunks), kThreads, 0, stream>>>(launch, partials);
  return cudaGetLastError();
}

}  // namespace

cudaError_t multi_rate_squares(const Launch& launch, double* partials, double* sums, cudaStream_t stream) {
  if (launch.num_chunks > 0) {
    cudaError_t error = cudaErrorInvalidValue;
    switch (launch.gradient_dtype) {
      case multi_rate::Dtype::float32:
        error = launch_chunk_squares<float, float>(launch, partials, stream);
        break;
      case multi_rate::Dtype::float64:
        error = launch_chunk_squares<double, double>(launch, partials, stream);
        break;
      case multi_rate::Dtype::bfloat16:
        error = launch_chunk_squares<float, __nv_bfloat16>(launch, partials, stream);
        break;
      case multi_rate::Dtype::float16:
        error = launch_chunk_squares<float, __half>(launch, partials, stream);
        break;
    }
    if (error != cudaSuccess) return error;
  }
  multi_rate_group_squares<<<grid_of(launch.num_groups + 1), kThreads, 0, stream>>>(launch, partials, sums);
  return cudaGetLastError();
}

cudaError_t multi_rate_step(const Launch& launch, unsigned* finished, cudaStream_t stream) {
  if (launch.num_tensors == 0) return cudaSuccess;
  const Master master = launch.master;
  switch (launch.param_dtype) {
    case multi_rate::Dtype::float32:
      return launch_update<float, float, float, Master::none>(launch, finished, stream);
    case multi_rate::Dtype::float64:
      return launch_update<double, double, double, Master::none>(launch, finished, stream);
    case multi_rate::Dtype::float16:
      if (master == Master::float32) return launch_sixteen_bit<__half, Master::float32>(launch, finished, stream);
      return launch_sixteen_bit<__half, Master::none>(launch, finished, stream);
    case multi_rate::Dtype::bfloat16:
      if (master == Master::float32)
        return launch_sixteen_bit<__nv_bfloat16, Master::float32>(launch, finished, stream);
      if (master == Master::remainder)
        return launch_sixteen_bit<__nv_bfloat16, Master::remainder>(launch, finished, stream);
      return launch_sixteen_bit<__nv_bfloat16, Master::none>(launch, finished, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace pgm_fast::cuda
