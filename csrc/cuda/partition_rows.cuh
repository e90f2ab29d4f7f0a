// Partition kernels that keep a whole row in registers: every tensor is read and written once, 16 bytes per access.
//
// Formulas: common/partition.h. A narrow row belongs to one warp of a block, a wide one to a block whose warps own
// consecutive stretches of it. Thread t of a warp holds the vectors t, t + 32, ... of its warp's stretch. Nothing is
// mutated but the outputs. Sums are formed in a fixed order; softmax and gates in float.
#pragma once

#include <cmath>
#include <limits>

#include "elements.cuh"
#include "partition_logits.cuh"
#include "scans.cuh"

namespace pgm_fast::cuda {

// Values of a row that a thread holds. With 16 both gradients of a dual gate still fit the 128 registers that a thread
// of the largest block has.
constexpr int kNarrow = 8, kWide = 16;
constexpr int kNarrowRowsPerBlock = 4;
constexpr int kMaxWarpsPerRow = 16;
constexpr int64_t kMaxRegisterWidth = kMaxWarpsPerRow * kWarp * kWide;  // 8192

template <class Split>
struct RowTensors {
  Split split;
  int64_t rows;
  int width;
  const void* h;
  Matrix logits[Split::kGates];       // or boundaries, see partition_logits.cuh
  void* part[Split::kParts];          // forward: outputs; backward: their gradients
  float* share;                       // the same, [rows, kShares]; kernels with kShare only
  void* grad_h;                       // backward only
  Matrix grad_logits[Split::kGates];  // backward only
};

// The threads that share a row, and where their warps leave sums for each other.
template <bool kBlock>
struct RowThreads {
  int warp;   // of the row
  int warps;  // of the row
  float (*board)[kWarp];

  template <int N>
  __device__ __forceinline__ void maxima(float (&x)[N]) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      x[n] = lanes_maximum(x[n]);
      if (kBlock && lane_index() == 0) board[n][warp] = x[n];
    }
    if constexpr (kBlock) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < N; ++n) x[n] = lanes_maximum<kMaxWarpsPerRow>(of_warp(n, -INFINITY));
    }
  }

  template <int N>
  __device__ __forceinline__ void sums(float (&x)[N], int slot) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      x[n] = lanes_sum(x[n]);
      if (kBlock && lane_index() == 0) board[slot + n][warp] = x[n];
    }
    if constexpr (kBlock) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < N; ++n) x[n] = lanes_sum<kMaxWarpsPerRow>(of_warp(slot + n, 0.0f));
    }
  }

  // What warp k of the row left on the board, for lanes k and kMaxWarpsPerRow + k; `none` where there is no such warp.
  __device__ __forceinline__ float of_warp(int slot, float none) const {
    const int k = lane_index() % kMaxWarpsPerRow;
    return k < warps ? board[slot][k] : none;
  }

  // Sums of the warps' numbers on the board before this warp, after it, and of all.
  __device__ __forceinline__ void around(int slot, float& left, float& right, float& total) const {
    sums_around<kMaxWarpsPerRow>(of_warp(slot, 0.0f), left, right, total);
    left = __shfl_sync(kAllLanes, left, warp);
    right = __shfl_sync(kAllLanes, right, warp);
  }
};

// From the sum of each of a thread's vectors: the sums of all vectors of its warp before it, after it, and of the
// warp. Vector i of every lane comes before vector i + 1 of any.
template <int ITEMS>
__device__ __forceinline__ void scan_warp(const float (&own)[ITEMS], float (&before)[ITEMS], float (&after)[ITEMS],
                                          float& total) {
  float of_vectors[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) sums_around(own[i], before[i], after[i], of_vectors[i]);
  total = 0;
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    before[i] += total;
    total += of_vectors[i];
  }
  float right = 0;
#pragma unroll
  for (int i = ITEMS - 1; i >= 0; --i) {
    after[i] += right;
    right += of_vectors[i];
  }
}

// The same over the whole row.
template <bool kBlock, int N, int ITEMS>
__device__ __forceinline__ void scan_row(const RowThreads<kBlock>& row, const float (&own)[N][ITEMS],
                                         float (&before)[N][ITEMS], float (&after)[N][ITEMS], float (&total)[N],
                                         int slot) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    scan_warp(own[n], before[n], after[n], total[n]);
    if constexpr (kBlock) {
      if (lane_index() == 0) row.board[slot + n][row.warp] = total[n];
    }
  }
  if constexpr (kBlock) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float left, right;
      row.around(slot + n, left, right, total[n]);
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        before[n][i] += left;
        after[n][i] += right;
      }
    }
  }
}

// From the sum of each of a thread's vectors, the sums of all vectors after it; and a sum over all threads of the row.
template <bool kBlock, int N, int ITEMS>
__device__ __forceinline__ void scan_row_from_right(const RowThreads<kBlock>& row, const float (&own)[N][ITEMS],
                                                    float (&after)[N][ITEMS], float (&sum)[N], int slot) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float before[ITEMS], total;
    scan_warp(own[n], before, after[n], total);
    sum[n] = lanes_sum(sum[n]);
    if constexpr (kBlock) {
      if (lane_index() == 0) {
        row.board[slot + n][row.warp] = total;
        row.board[slot + N + n][row.warp] = sum[n];
      }
    }
  }
  if constexpr (kBlock) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float left, right, total;
      row.around(slot + n, left, right, total);
      sum[n] = lanes_sum<kMaxWarpsPerRow>(row.of_warp(slot + N + n, 0.0f));
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) after[n][i] += right;
    }
  }
}

// The softmax of a thread's share of a row, and what its gates are made of.
template <class Split, class S, int ITEMS, bool kBlock>
struct RowGates {
  static constexpr int kGates = Split::kGates, kSize = Sixteen<S>::size;
  float p[kGates][ITEMS][kSize];
  float before[kGates][ITEMS], after[kGates][ITEMS];
  typename Split::Start start[kGates];
  float inverse_total[kGates];

  __device__ __forceinline__ void compute(const RowTensors<Split>& t, const RowThreads<kBlock>& threads, int64_t row,
                                          int first) {
    if constexpr (Split::kLoaded) {
      float largest[kGates];
#pragma unroll
      for (int n = 0; n < kGates; ++n) {
        load(t, n, row, first);
        largest[n] = -INFINITY;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
          for (int j = 0; j < kSize; ++j) largest[n] = fmax(largest[n], p[n][i][j]);
        }
      }
      threads.maxima(largest);
#pragma unroll
      for (int n = 0; n < kGates; ++n) start[n] = t.split.peak(largest[n]);
    } else {
#pragma unroll
      for (int n = 0; n < kGates; ++n) start[n] = t.split.start(n, t.logits[n], row, t.width);
      // until the sums of the block's row before have been read, which maxima wait for elsewhere
      if (kBlock && row >= gridDim.x) __syncthreads();
    }
    float own[kGates][ITEMS], total[kGates];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        own[n][i] = 0;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          p[n][i][j] = exponential(t, n, i, j, first);
          own[n][i] += p[n][i][j];
        }
      }
    }
    scan_row<kBlock>(threads, own, before, after, total, kGates);
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      inverse_total[n] = reciprocal(total[n]);
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        before[n][i] *= inverse_total[n];
        after[n][i] *= inverse_total[n];
#pragma unroll
        for (int j = 0; j < kSize; ++j) p[n][i][j] *= inverse_total[n];
      }
    }
  }

  // p of gate n again, where it could not be kept, but for a factor, which is returned.
  __device__ __forceinline__ float again(const RowTensors<Split>& t, int n, int64_t row, int first) {
    if constexpr (Split::kLoaded) load(t, n, row, first);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) p[n][i][j] = exponential(t, n, i, j, first);
    }
    return inverse_total[n];
  }

  // Logits into p; what is past the row's end counts as p = 0.
  __device__ __forceinline__ void load(const RowTensors<Split>& t, int n, int64_t row, int first) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int k = first + i * kWarp * kSize;
      load_sixteen_or<S>(Sixteen<S>::kNegativeInfinity, k < t.width, t.logits[n].data, row * t.width + k)
          .unpack(p[n][i]);
    }
  }

  // Of logits that are in p.
  __device__ __forceinline__ float exponential(const RowTensors<Split>& t, int n, int i, int j, int first) const {
    if constexpr (Split::kLoaded) {
      return t.split.exponential(p[n][i][j], start[n]);
    } else {
      const bool inside = first + i * kWarp * kSize < t.width;
      return inside ? t.split.exponential(from_peak(n, i, j, first), start[n]) : 0.0f;
    }
  }
  // How far value j of vector i is from the peak of a bump.
  __device__ __forceinline__ float from_peak(int n, int i, int j, int first) const {
    return (static_cast<float>(first) - start[n].peak) + static_cast<float>(i * kWarp * kSize + j);
  }

  // Gates and complements of vector i. What multiplies h is clamped; a last digit past 1 does gradients no harm.
  template <bool kClamped>
  __device__ __forceinline__ void gates(int i, float (&gate)[kSize][kGates], float (&complement)[kSize][kGates]) const {
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      float sum = before[n][i];
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        sum += p[n][i][j];
        gate[j][n] = kClamped ? at_most_one(sum) : sum;
      }
      sum = after[n][i];
#pragma unroll
      for (int j = kSize - 1; j >= 0; --j) {
        complement[j][n] = kClamped ? at_most_one(sum) : sum;
        sum += p[n][i][j];
      }
    }
  }
};

template <class Split, class S, bool kBlock, bool kShare>
__global__ void __launch_bounds__(kBlock ? kMaxWarpsPerRow * kWarp : kNarrowRowsPerBlock * kWarp)
    partition_row_forward(const __grid_constant__ RowTensors<Split> t) {
  constexpr int kSize = Sixteen<S>::size, kItems = (kBlock ? kWide : kNarrow) / kSize, kShares = Split::kShares;
  __shared__ float board[2 * Split::kGates + (kShare ? kShares : 0)][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const RowThreads<kBlock> threads{kBlock ? warp : 0, kBlock ? warps : 1, board};
  const int first = (threads.warp * kItems * kWarp + lane_index()) * kSize;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * kNarrowRowsPerBlock;
  for (int64_t row = kBlock ? blockIdx.x : int64_t{blockIdx.x} * kNarrowRowsPerBlock + warp; row < t.rows;
       row += step) {
    const int64_t base = row * t.width;
    Sixteen<S> h[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = first + i * kWarp * kSize;
      h[i] = load_sixteen_or<S>(0, k < t.width, t.h, base + k);
    }
    RowGates<Split, S, kItems, kBlock> held;
    held.compute(t, threads, row, first);
    float share[kShares];
#pragma unroll
    for (int n = 0; n < kShares; ++n) share[n] = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = first + i * kWarp * kSize;
      const bool inside = k < t.width;
      float gate[kSize][Split::kGates], complement[kSize][Split::kGates], x[kSize], part[Split::kParts][kSize];
      held.template gates<true>(i, gate, complement);
      h[i].unpack(x);
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        float of_one[Split::kParts];
        t.split.split(gate[j], complement[j], x[j], of_one);
#pragma unroll
        for (int n = 0; n < Split::kParts; ++n) part[n][j] = of_one[n];
        if constexpr (kShare) {
          float mass[kShares];
          Split::masses(gate[j], complement[j], mass);
#pragma unroll
          for (int n = 0; n < kShares; ++n) share[n] += inside ? mass[n] : 0.0f;
        }
      }
#pragma unroll
      for (int n = 0; n < Split::kParts; ++n) {
        if (inside) store_sixteen<S>(part[n], t.part[n], base + k);
      }
    }
    if constexpr (kShare) {
      threads.sums(share, 2 * Split::kGates);
      if (threads.warp == 0 && lane_index() == 0) {
#pragma unroll
        for (int n = 0; n < kShares; ++n) share[n] /= static_cast<float>(t.width);
        store_floats(share, t.share + row * kShares);
      }
    }
  }
}

template <class Split, class S, bool kBlock, bool kShare>
__global__ void __launch_bounds__(kBlock ? kMaxWarpsPerRow * kWarp : kNarrowRowsPerBlock * kWarp)
    partition_row_backward(const __grid_constant__ RowTensors<Split> t) {
  constexpr int kSize = Sixteen<S>::size, kItems = (kBlock ? kWide : kNarrow) / kSize, kGates = Split::kGates,
                kParts = Split::kParts;
  __shared__ float board[4 * kGates][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const RowThreads<kBlock> threads{kBlock ? warp : 0, kBlock ? warps : 1, board};
  const int first = (threads.warp * kItems * kWarp + lane_index()) * kSize;
  const int64_t step = kBlock ? gridDim.x : int64_t{gridDim.x} * kNarrowRowsPerBlock;
  for (int64_t row = kBlock ? blockIdx.x : int64_t{blockIdx.x} * kNarrowRowsPerBlock + warp; row < t.rows;
       row += step) {
    const int64_t base = row * t.width;
    RowGates<Split, S, kItems, kBlock> held;
    held.compute(t, threads, row, first);
    float by_share[Split::kMasses];
    if constexpr (kShare) {
      float grad[Split::kShares];
      load_floats(t.share + row * Split::kShares, grad);
      spread_grad_share(grad, static_cast<float>(t.width), by_share);
    }

    // gradients of h, and of the gates by dimension
    float by_gate[kGates][kItems][kSize], dot[kGates];
#pragma unroll
    for (int n = 0; n < kGates; ++n) dot[n] = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = first + i * kWarp * kSize;
      const bool inside = k < t.width;
      // zeros past the row's end, where only a share gives gates a gradient
      Sixteen<S> loaded[kParts + 1];
#pragma unroll
      for (int n = 0; n < kParts; ++n) loaded[n] = load_sixteen_or<S>(0, inside, t.part[n], base + k);
      loaded[kParts] = load_sixteen_or<S>(0, inside, t.h, base + k);
      float gate[kSize][kGates], complement[kSize][kGates], x[kSize], grad[kParts][kSize], grad_h[kSize];
      float of_vector[kGates] = {};
      held.template gates<false>(i, gate, complement);
      loaded[kParts].unpack(x);
#pragma unroll
      for (int n = 0; n < kParts; ++n) loaded[n].unpack(grad[n]);
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        float of_one[kParts], product[Split::kProducts], of_gate[kGates];
#pragma unroll
        for (int n = 0; n < kParts; ++n) of_one[n] = grad[n][j];
        grad_h[j] = t.split.grad_h(gate[j], complement[j], of_one);
        t.split.products(x[j], of_one, product);
        Split::template grad_gates<kShare>(gate[j], complement[j], product, by_share, of_gate);
#pragma unroll
        for (int n = 0; n < kGates; ++n) {
          by_gate[n][i][j] = of_gate[n];
          (kShare ? of_vector[n] : dot[n]) += of_gate[n] * gate[j][n];
        }
      }
      if constexpr (kShare) {
#pragma unroll
        for (int n = 0; n < kGates; ++n) dot[n] += inside ? of_vector[n] : 0.0f;
      }
      if (inside) store_sixteen<S>(grad_h, t.grad_h, base + k);
    }

    // grad_z = p (s - <p, s>) times a factor, s_k the sum of by_gate from k on; <p, s> = <by_gate, gate>
    float own[kGates][kItems], after[kGates][kItems];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        float sum = 0;
#pragma unroll
        for (int j = kSize - 1; j >= 0; --j) sum += by_gate[n][i][j];
        own[n][i] = !kShare || first + i * kWarp * kSize < t.width ? sum : 0.0f;
      }
    }
    scan_row_from_right<kBlock>(threads, own, after, dot, 2 * kGates);
    float by_center[kGates];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      by_center[n] = 0;
      float factor = t.split.factor;
      // two softmaxes and two gradients do not fit the registers of a large block
      if constexpr (kBlock && kGates > 1) {
        if (n == 1) factor *= held.again(t, n, row, first);
      }
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int k = first + i * kWarp * kSize;
        float sum = after[n][i] - dot[n], grad_z[kSize];
#pragma unroll
        for (int j = kSize - 1; j >= 0; --j) {
          sum += by_gate[n][i][j];
          grad_z[j] = held.p[n][i][j] * sum * factor;
          if constexpr (!Split::kLoaded) by_center[n] += grad_z[j] * held.from_peak(n, i, j, first);
        }
        if constexpr (Split::kLoaded) {
          if (k < t.width) store_sixteen<S>(grad_z, t.grad_logits[n].data, base + k);
        }
      }
    }
    if constexpr (!Split::kLoaded) {
      // where logits that are loaded have their maxima
      threads.sums(by_center, 0);
      if (threads.warp == 0 && lane_index() == 0) {
#pragma unroll
        for (int n = 0; n < kGates; ++n) t.split.store_gradient(n, by_center[n], t.grad_logits[n], row);
      }
    }
  }
}

inline unsigned grid_for(int64_t blocks) {
  return static_cast<unsigned>(blocks < std::numeric_limits<int>::max() ? blocks : std::numeric_limits<int>::max());
}

template <class Split, class S, bool kBackward, bool kShare>
cudaError_t launch_row_kernel(const RowTensors<Split>& t, cudaStream_t stream) {
  const bool narrow = t.width <= kNarrow * kWarp;
  const unsigned grid = grid_for(narrow ? (t.rows + kNarrowRowsPerBlock - 1) / kNarrowRowsPerBlock : t.rows);
  const unsigned threads = (narrow ? kNarrowRowsPerBlock : (t.width + kWide * kWarp - 1) / (kWide * kWarp)) * kWarp;
  if constexpr (kBackward) {
    if (narrow) {
      partition_row_backward<Split, S, false, kShare><<<grid, threads, 0, stream>>>(t);
    } else {
      partition_row_backward<Split, S, true, kShare><<<grid, threads, 0, stream>>>(t);
    }
  } else {
    if (narrow) {
      partition_row_forward<Split, S, false, kShare><<<grid, threads, 0, stream>>>(t);
    } else {
      partition_row_forward<Split, S, true, kShare><<<grid, threads, 0, stream>>>(t);
    }
  }
  return cudaGetLastError();
}

}  // namespace pgm_fast::cuda
