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
      for (int n = 0; n < N; ++n) x[n] = lanes_maximum(lane_index() < warps ? board[n][lane_index()] : -INFINITY);
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
      for (int n = 0; n < N; ++n) x[n] = lanes_sum(lane_index() < warps ? board[slot + n][lane_index()] : 0.0f);
    }
  }
};

// From the sum of each of a thread's vectors: the sums of all vectors of the row before it, after it, and of the whole
// row.
template <bool kBlock, int N, int ITEMS>
__device__ __forceinline__ void scan_row(const RowThreads<kBlock>& row, const float (&own)[N][ITEMS],
                                         float (&before)[N][ITEMS], float (&after)[N][ITEMS], float (&total)[N],
                                         int slot) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float left = 0, right = 0;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const float scanned = prefix_sum(own[n][i]);
      before[n][i] = left + of_lane_before(scanned);
      left += __shfl_sync(kAllLanes, scanned, kWarp - 1);
    }
#pragma unroll
    for (int i = ITEMS - 1; i >= 0; --i) {
      const float scanned = suffix_sum(own[n][i]);
      after[n][i] = right + of_lane_after(scanned);
      right += __shfl_sync(kAllLanes, scanned, 0);
    }
    total[n] = left;
    if constexpr (kBlock) {
      if (lane_index() == 0) row.board[slot + n][row.warp] = left;
    }
  }
  if constexpr (kBlock) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float of_warp = lane_index() < row.warps ? row.board[slot + n][lane_index()] : 0.0f;
      const float from_left = prefix_sum(of_warp), from_right = suffix_sum(of_warp);
      const float left = __shfl_sync(kAllLanes, of_lane_before(from_left), row.warp);
      const float right = __shfl_sync(kAllLanes, of_lane_after(from_right), row.warp);
      total[n] = __shfl_sync(kAllLanes, from_left, kWarp - 1);
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
    float right = 0;
#pragma unroll
    for (int i = ITEMS - 1; i >= 0; --i) {
      const float scanned = suffix_sum(own[n][i]);
      after[n][i] = right + of_lane_after(scanned);
      right += __shfl_sync(kAllLanes, scanned, 0);
    }
    sum[n] = lanes_sum(sum[n]);
    if constexpr (kBlock) {
      if (lane_index() == 0) {
        row.board[slot + n][row.warp] = right;
        row.board[slot + N + n][row.warp] = sum[n];
      }
    }
  }
  if constexpr (kBlock) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const bool used = lane_index() < row.warps;
      const float from_right = suffix_sum(used ? row.board[slot + n][lane_index()] : 0.0f);
      const float right = __shfl_sync(kAllLanes, of_lane_after(from_right), row.warp);
      sum[n] = lanes_sum(used ? row.board[slot + N + n][lane_index()] : 0.0f);
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) after[n][i] += right;
    }
  }
}

// The exponentials of a thread's share of a row, and what its gates are made of.
template <class Split, class S, int ITEMS, bool kBlock>
struct RowGates {
  static constexpr int kGates = Split::kGates, kSize = Sixteen<S>::size;
  float e[kGates][ITEMS][kSize];
  float before[kGates][ITEMS], after[kGates][ITEMS];
  typename Split::Start start[kGates];
  float inverse_total[kGates];

  __device__ __forceinline__ void compute(const RowTensors<Split>& t, const RowThreads<kBlock>& threads, int64_t row,
                                          int first) {
    if constexpr (Split::kLoaded) {
#pragma unroll
      for (int n = 0; n < kGates; ++n) load(t, n, row, first);
#pragma unroll
      for (int n = 0; n < kGates; ++n) {
        start[n] = -INFINITY;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
          for (int j = 0; j < kSize; ++j) start[n] = e[n][i][j] > start[n] ? e[n][i][j] : start[n];
        }
      }
      threads.maxima(start);
    } else {
#pragma unroll
      for (int n = 0; n < kGates; ++n) start[n] = t.split.start(n, t.logits[n], row, t.width);
      // until the sums of the block's row before have been read, which maxima wait for elsewhere
      if (kBlock && row >= gridDim.x) __syncthreads();
    }
    float own[kGates][ITEMS], total[kGates];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      exponentials(t, n, first);
#pragma unroll
      for (int i = 0; i < ITEMS; ++i) {
        own[n][i] = 0;
#pragma unroll
        for (int j = 0; j < kSize; ++j) own[n][i] += e[n][i][j];
      }
    }
    scan_row<kBlock>(threads, own, before, after, total, kGates);
#pragma unroll
    for (int n = 0; n < kGates; ++n) inverse_total[n] = 1.0f / total[n];
  }

  // e of gate n again, where it could not be kept.
  __device__ __forceinline__ void again(const RowTensors<Split>& t, int n, int64_t row, int first) {
    if constexpr (Split::kLoaded) load(t, n, row, first);
    exponentials(t, n, first);
  }

  // Logits into e; what is past the row's end counts as e = 0.
  __device__ __forceinline__ void load(const RowTensors<Split>& t, int n, int64_t row, int first) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int k = first + i * kWarp * kSize;
      if (k < t.width) {
        load_sixteen<S>(t.logits[n].data, row * t.width, k).unpack(e[n][i]);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j) e[n][i][j] = -INFINITY;
      }
    }
  }
  __device__ __forceinline__ void exponentials(const RowTensors<Split>& t, int n, int first) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        if constexpr (Split::kLoaded) {
          e[n][i][j] = t.split.exponential(e[n][i][j], start[n]);
        } else {
          const bool inside = first + i * kWarp * kSize < t.width;
          e[n][i][j] = inside ? t.split.exponential(from_peak(n, i, j, first), start[n]) : 0.0f;
        }
      }
    }
  }
  // How far value j of vector i is from the peak of a bump.
  __device__ __forceinline__ float from_peak(int n, int i, int j, int first) const {
    return (static_cast<float>(first) - start[n].peak) + static_cast<float>(i * kWarp * kSize + j);
  }

  // Gates and complements of vector i.
  __device__ __forceinline__ void gates(int i, float (&gate)[kSize][kGates], float (&complement)[kSize][kGates]) const {
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        sum += e[n][i][j];
        gate[j][n] = at_most_one((before[n][i] + sum) * inverse_total[n]);
      }
      sum = 0;
#pragma unroll
      for (int j = kSize - 1; j >= 0; --j) {
        complement[j][n] = at_most_one((after[n][i] + sum) * inverse_total[n]);
        sum += e[n][i][j];
      }
    }
  }

  // Rounding can carry a scan past 1; a NaN stays one.
  static __device__ __forceinline__ float at_most_one(float x) { return x > 1.0f ? 1.0f : x; }
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
      if (k < t.width) h[i] = load_sixteen<S>(t.h, base, k);
    }
    RowGates<Split, S, kItems, kBlock> held;
    held.compute(t, threads, row, first);
    float share[kShares];
#pragma unroll
    for (int n = 0; n < kShares; ++n) share[n] = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int k = first + i * kWarp * kSize;
      if (k >= t.width) continue;
      float gate[kSize][Split::kGates], complement[kSize][Split::kGates], x[kSize], part[Split::kParts][kSize];
      held.gates(i, gate, complement);
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
          for (int n = 0; n < kShares; ++n) share[n] += mass[n];
        }
      }
#pragma unroll
      for (int n = 0; n < Split::kParts; ++n) store_sixteen<S>(part[n], t.part[n], base, k);
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
      if (k >= t.width) {
#pragma unroll
        for (int n = 0; n < kGates; ++n) {
#pragma unroll
          for (int j = 0; j < kSize; ++j) by_gate[n][i][j] = 0;
        }
        continue;
      }
      Sixteen<S> loaded[kParts + 1];
#pragma unroll
      for (int n = 0; n < kParts; ++n) loaded[n] = load_sixteen<S>(t.part[n], base, k);
      loaded[kParts] = load_sixteen<S>(t.h, base, k);
      float gate[kSize][kGates], complement[kSize][kGates], x[kSize], grad[kParts][kSize], grad_h[kSize];
      held.gates(i, gate, complement);
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
          dot[n] += of_gate[n] * gate[j][n];
        }
      }
      store_sixteen<S>(grad_h, t.grad_h, base, k);
    }

    // grad_z = p (s - <p, s>) times a factor, s_k the sum of by_gate from k on; <p, s> = <by_gate, gate>
    float own[kGates][kItems], after[kGates][kItems];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        own[n][i] = 0;
#pragma unroll
        for (int j = kSize - 1; j >= 0; --j) own[n][i] += by_gate[n][i][j];
      }
    }
    scan_row_from_right<kBlock>(threads, own, after, dot, 2 * kGates);
    float by_center[kGates];
#pragma unroll
    for (int n = 0; n < kGates; ++n) {
      by_center[n] = 0;
      // two softmaxes and two gradients do not fit the registers of a large block
      if constexpr (kBlock && kGates > 1) held.again(t, n, row, first);
      const float scale = held.inverse_total[n] * t.split.factor;
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int k = first + i * kWarp * kSize;
        if (k >= t.width) continue;
        float sum = 0, grad_z[kSize];
#pragma unroll
        for (int j = kSize - 1; j >= 0; --j) {
          sum += by_gate[n][i][j];
          grad_z[j] = held.e[n][i][j] * (after[n][i] + sum - dot[n]) * scale;
          if constexpr (!Split::kLoaded) by_center[n] += grad_z[j] * held.from_peak(n, i, j, first);
        }
        if constexpr (Split::kLoaded) store_sixteen<S>(grad_z, t.grad_logits[n].data, base, k);
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
