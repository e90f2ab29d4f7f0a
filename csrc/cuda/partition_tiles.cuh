// Partition kernels for what does not fit partition_rows.cuh: any width and alignment, one gate for several neighbours,
// h and z of different dtypes, double. They go over a row of gates in tiles of 32, three times forward and four times
// backward; all but the first time it comes from the cache.
//
// A row belongs to one warp or to all of a block's; each tile to one warp of them. Sums of tiles wait in shared memory.
// Formulas in common/partition.h; sums are formed in a fixed order, in T (float, double for float64).
#pragma once

#include <cmath>
#include <limits>

#include "elements.cuh"
#include "partition_logits.cuh"
#include "scans.cuh"

namespace pgm_fast::cuda {

constexpr int kTileWarps = 8;           // of a block
constexpr int64_t kTilesOfOneWarp = 8;  // rows of more tiles get a whole block
// So that the sums of tiles fit the shared memory that every device gives unasked, 48 KiB.
template <class T>
constexpr int64_t kMaxGates = sizeof(T) == 8 ? 16384 : 32768;
constexpr int64_t kMaxChunk = std::numeric_limits<int>::max() / kWarp - 1;

template <class Split>
struct TileTensors {
  Split split;
  int64_t rows;
  int64_t width;
  int64_t gates;
  int chunk;  // elements per gate
  int tiles;
  int warps_per_row;  // 1 or kTileWarps
  Matrix h;
  Matrix logits[Split::kGates];       // or boundaries, see partition_logits.cuh
  Matrix part[Split::kParts];         // forward: outputs; backward: their gradients
  Matrix share;                       // the same, [rows, kShares]; kernels with kShare only
  Matrix grad_h;                      // backward only
  Matrix grad_logits[Split::kGates];  // backward only
};

// The warps of a row, and their shared memory.
template <class Split>
struct TileRow {
  using T = typename Split::Number;
  static constexpr int kGates = Split::kGates, kShares = Split::kShares;
  static constexpr int kBoards = 2 * kGates + kShares;
  const TileTensors<Split>& t;
  int warp;  // of the row
  int64_t row;
  T (*board)[kTileWarps];  // [kBoards]
  T* before;               // [kGates][tiles]: sum of the softmax before a tile
  T* after;                // and after it
  typename Split::Start start[kGates];
  T inverse_total[kGates];
  T by_share[Split::kMasses];  // backward with kShare only

  __device__ void wait() const {
    if (t.warps_per_row == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ T exponential(int n, int64_t k) const {
    if (k >= t.gates) return T(0);
    if constexpr (Split::kLoaded) {
      return t.split.exponential(load_one<T>(t.logits[n], row * t.gates + k), start[n]);
    } else {
      return t.split.exponential(from_peak(n, k), start[n]);
    }
  }
  // How far gate k is from the peak of a bump.
  __device__ T from_peak(int n, int64_t k) const { return T(static_cast<int>(k)) - start[n].peak; }

  __device__ void find_bumps() {
    for (int n = 0; n < kGates; ++n) start[n] = t.split.start(n, t.logits[n], row, T(static_cast<int>(t.gates)));
    // until the sums of the row before have been read
    wait();
  }
  __device__ void find_maxima() {
    for (int n = 0; n < kGates; ++n) {
      T x = T(-INFINITY);
      for (int64_t k = warp * kWarp + lane_index(); k < t.gates; k += t.warps_per_row * kWarp) {
        const T z = load_one<T>(t.logits[n], row * t.gates + k);
        x = z > x ? z : x;
      }
      x = lanes_maximum(x);
      if (lane_index() == 0) board[n][warp] = x;
    }
    wait();
    for (int n = 0; n < kGates; ++n) {
      T x = board[n][0];
      for (int w = 1; w < t.warps_per_row; ++w) x = board[n][w] > x ? board[n][w] : x;
      start[n] = t.split.peak(x);
    }
  }

  // Sums of tiles [tiles] to the sums after each, in place of `to`; by one warp.
  __device__ void scan_from_right(const T* of_tile, T* to) const {
    T right = 0;
    for (int base = (t.tiles - 1) / kWarp * kWarp; base >= 0; base -= kWarp) {
      const int tile = base + lane_index();
      const T scanned = suffix_sum(tile < t.tiles ? of_tile[tile] : T(0));
      const T rest = right + of_lane_after(scanned);
      if (tile < t.tiles) to[tile] = rest;
      right += __shfl_sync(kAllLanes, scanned, 0);
    }
  }
  // Sums of tiles to the sums before each, in place; returns the sum of all.
  __device__ T scan_from_left(T* of_tile) const {
    T left = 0;
    for (int base = 0; base < t.tiles; base += kWarp) {
      const int tile = base + lane_index();
      const T scanned = prefix_sum(tile < t.tiles ? of_tile[tile] : T(0));
      const T rest = left + of_lane_before(scanned);
      if (tile < t.tiles) of_tile[tile] = rest;
      left += __shfl_sync(kAllLanes, scanned, kWarp - 1);
    }
    return left;
  }

  // Everything that gates() needs.
  __device__ void prepare() {
    if constexpr (Split::kLoaded) {
      find_maxima();
    } else {
      find_bumps();
    }
    for (int tile = warp; tile < t.tiles; tile += t.warps_per_row) {
      for (int n = 0; n < kGates; ++n) {
        const T sum = lanes_sum(exponential(n, int64_t{tile} * kWarp + lane_index()));
        if (lane_index() == 0) before[n * t.tiles + tile] = sum;
      }
    }
    wait();
    if (warp == 0) {
      for (int n = 0; n < kGates; ++n) {
        scan_from_right(before + n * t.tiles, after + n * t.tiles);
        __syncwarp();
        const T total = scan_from_left(before + n * t.tiles);
        if (lane_index() == 0) board[kGates + n][0] = T(1) / total;
      }
    }
    wait();
    for (int n = 0; n < kGates; ++n) inverse_total[n] = board[kGates + n][0];
  }

  // Softmax, gate and complement of this lane's gate of a tile.
  __device__ void gates(int tile, T (&p)[kGates], T (&gate)[kGates], T (&complement)[kGates]) const {
    for (int n = 0; n < kGates; ++n) {
      const T e = exponential(n, int64_t{tile} * kWarp + lane_index());
      const T left = before[n * t.tiles + tile] + prefix_sum(e);
      const T right = after[n * t.tiles + tile] + of_lane_after(suffix_sum(e));
      p[n] = e * inverse_total[n];
      gate[n] = at_most_one(left * inverse_total[n]);
      complement[n] = at_most_one(right * inverse_total[n]);
    }
  }

  // Rounding can carry a scan past 1; a NaN stays one.
  static __device__ T at_most_one(T x) { return x > T(1) ? T(1) : x; }

  // visit(element, gate, complement) for the elements of a tile, neighbours by neighbouring lanes.
  template <class Visit>
  __device__ void for_each_element(int tile, const T (&gate)[kGates], const T (&complement)[kGates],
                                   Visit&& visit) const {
    const int64_t begin = int64_t{tile} * kWarp * t.chunk;
    for (int at = 0; at < kWarp * t.chunk && begin + at < t.width; at += kWarp) {
      const int owner = (at + lane_index()) / t.chunk;
      T of_gate[kGates], of_complement[kGates];
      for (int n = 0; n < kGates; ++n) {
        of_gate[n] = __shfl_sync(kAllLanes, gate[n], owner);
        of_complement[n] = __shfl_sync(kAllLanes, complement[n], owner);
      }
      const int64_t k = begin + at + lane_index();
      if (k < t.width) visit(row * t.width + k, of_gate, of_complement);
    }
  }

  __device__ void load_parts(int64_t element, T (&grad)[Split::kParts]) const {
    for (int n = 0; n < Split::kParts; ++n) grad[n] = load_one<T>(t.part[n], element);
  }

  // What grad_gates() needs of the row.
  __device__ void load_share() {
    T grad[kShares];
    for (int n = 0; n < kShares; ++n) grad[n] = load_one<T>(t.share, row * kShares + n);
    spread_grad_share(grad, T(t.gates), by_share);
  }

  // Sums over the lanes and warps of the row; for its first thread, which is told so.
  template <int N>
  __device__ bool sums(T (&x)[N]) const {
    static_assert(N <= kShares, "the boards of the shares");
    for (int n = 0; n < N; ++n) {
      x[n] = lanes_sum(x[n]);
      if (lane_index() == 0) board[2 * kGates + n][warp] = x[n];
    }
    wait();
    if (warp != 0 || lane_index() != 0) return false;
    for (int n = 0; n < N; ++n) {
      for (int w = 1; w < t.warps_per_row; ++w) x[n] += board[2 * kGates + n][w];
    }
    return true;
  }
  __device__ void store_share(T (&mass)[kShares]) const {
    if (!sums(mass)) return;
    for (int n = 0; n < kShares; ++n) store_one(mass[n] / T(t.gates), t.share, row * kShares + n);
  }

  // The gradient of this lane's gate of a tile: the sum over its neighbours, and what the share adds.
  template <bool kShare>
  __device__ void grad_gates(int tile, const T (&gate)[kGates], const T (&complement)[kGates],
                             T (&of_gate)[kGates]) const {
    const int64_t k = int64_t{tile} * kWarp + lane_index();
    for (int n = 0; n < kGates; ++n) of_gate[n] = 0;
    if (k >= t.gates) return;
    T sum[Split::kProducts];
    for (int n = 0; n < Split::kProducts; ++n) sum[n] = 0;
    for (int64_t element = row * t.width + k * t.chunk; element < row * t.width + (k + 1) * t.chunk; ++element) {
      T grad[Split::kParts], product[Split::kProducts];
      load_parts(element, grad);
      t.split.products(load_one<T>(t.h, element), grad, product);
      for (int n = 0; n < Split::kProducts; ++n) sum[n] += product[n];
    }
    Split::template grad_gates<kShare>(gate, complement, sum, by_share, of_gate);
  }
};

// Which warp of which row this is. A block's rows, 1 or kTileWarps, each have their own stretch of the shared memory.
template <class Split>
__device__ __forceinline__ TileRow<Split> tile_row(
    const TileTensors<Split>& t, typename Split::Number (*boards)[TileRow<Split>::kBoards][kTileWarps],
    unsigned char* memory, int arrays) {
  using T = typename Split::Number;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int slot = t.warps_per_row == 1 ? warp : 0;
  T* sums = reinterpret_cast<T*>(memory) + int64_t{slot} * arrays * Split::kGates * t.tiles;
  return {t, t.warps_per_row == 1 ? 0 : warp, 0, boards[slot], sums, sums + Split::kGates * t.tiles, {}, {}, {}};
}

template <class Split>
__device__ __forceinline__ int64_t first_row(const TileTensors<Split>& t) {
  return t.warps_per_row == 1 ? int64_t{blockIdx.x} * kTileWarps + threadIdx.x / kWarp : blockIdx.x;
}
template <class Split>
__device__ __forceinline__ int64_t row_step(const TileTensors<Split>& t) {
  return int64_t{gridDim.x} * (kTileWarps / t.warps_per_row);
}

template <class Split, bool kShare>
__global__ void __launch_bounds__(kTileWarps* kWarp, 1)
    partition_tile_forward(const __grid_constant__ TileTensors<Split> t) {
  constexpr int kGates = Split::kGates, kParts = Split::kParts, kShares = Split::kShares;
  using T = typename Split::Number;
  __shared__ T boards[kTileWarps][TileRow<Split>::kBoards][kTileWarps];
  extern __shared__ __align__(16) unsigned char memory[];
  TileRow<Split> r = tile_row(t, boards, memory, 2);
  for (r.row = first_row(t); r.row < t.rows; r.row += row_step(t)) {
    r.prepare();
    T share[kShares];
    for (int n = 0; n < kShares; ++n) share[n] = 0;
    for (int tile = r.warp; tile < t.tiles; tile += t.warps_per_row) {
      T p[kGates], gate[kGates], complement[kGates];
      r.gates(tile, p, gate, complement);
      if (kShare && int64_t{tile} * kWarp + lane_index() < t.gates) {
        T mass[kShares];
        Split::masses(gate, complement, mass);
        for (int n = 0; n < kShares; ++n) share[n] += mass[n];
      }
      r.for_each_element(tile, gate, complement, [&](int64_t element, const T(&g)[kGates], const T(&c)[kGates]) {
        T part[kParts];
        t.split.split(g, c, load_one<T>(t.h, element), part);
        for (int n = 0; n < kParts; ++n) store_one(part[n], t.part[n], element);
      });
    }
    if constexpr (kShare) r.store_share(share);
  }
}

template <class Split, bool kShare>
__global__ void __launch_bounds__(kTileWarps* kWarp, 1)
    partition_tile_backward(const __grid_constant__ TileTensors<Split> t) {
  constexpr int kGates = Split::kGates, kParts = Split::kParts;
  using T = typename Split::Number;
  __shared__ T boards[kTileWarps][TileRow<Split>::kBoards][kTileWarps];
  extern __shared__ __align__(16) unsigned char memory[];
  TileRow<Split> r = tile_row(t, boards, memory, 3);
  T* by_tile = r.after + kGates * t.tiles;  // sum of the gates' gradients in a tile, then after it
  for (r.row = first_row(t); r.row < t.rows; r.row += row_step(t)) {
    r.prepare();
    if constexpr (kShare) r.load_share();
    T dot[kGates];
    for (int n = 0; n < kGates; ++n) dot[n] = 0;
    for (int tile = r.warp; tile < t.tiles; tile += t.warps_per_row) {
      T p[kGates], gate[kGates], complement[kGates], of_gate[kGates];
      r.gates(tile, p, gate, complement);
      r.for_each_element(tile, gate, complement, [&](int64_t element, const T(&g)[kGates], const T(&c)[kGates]) {
        T grad[kParts];
        r.load_parts(element, grad);
        store_one(t.split.grad_h(g, c, grad), t.grad_h, element);
      });
      r.template grad_gates<kShare>(tile, gate, complement, of_gate);
      for (int n = 0; n < kGates; ++n) {
        dot[n] += of_gate[n] * gate[n];
        const T sum = lanes_sum(of_gate[n]);
        if (lane_index() == 0) by_tile[n * t.tiles + tile] = sum;
      }
    }
    for (int n = 0; n < kGates; ++n) {
      const T sum = lanes_sum(dot[n]);
      if (lane_index() == 0) r.board[n][r.warp] = sum;
    }
    r.wait();
    for (int n = 0; n < kGates; ++n) {
      dot[n] = 0;
      for (int w = 0; w < t.warps_per_row; ++w) dot[n] += r.board[n][w];
      if (r.warp == 0) r.scan_from_right(by_tile + n * t.tiles, by_tile + n * t.tiles);
    }
    r.wait();
    // grad_z = p (s - <p, s>) times a factor, s_k the sum of the gates' gradients from k on; <p, s> = <gate, its
    // gradient>
    T by_center[kGates];
    for (int n = 0; n < kGates; ++n) by_center[n] = 0;
    for (int tile = r.warp; tile < t.tiles; tile += t.warps_per_row) {
      T p[kGates], gate[kGates], complement[kGates], of_gate[kGates];
      r.gates(tile, p, gate, complement);
      r.template grad_gates<kShare>(tile, gate, complement, of_gate);
      const int64_t k = int64_t{tile} * kWarp + lane_index();
      for (int n = 0; n < kGates; ++n) {
        const T s = by_tile[n * t.tiles + tile] + suffix_sum(of_gate[n]);
        const T grad_z = p[n] * (s - dot[n]) * t.split.factor;
        if (k >= t.gates) continue;
        if constexpr (Split::kLoaded) {
          store_one(grad_z, t.grad_logits[n], r.row * t.gates + k);
        } else {
          by_center[n] += grad_z * r.from_peak(n, k);
        }
      }
    }
    if constexpr (!Split::kLoaded) {
      if (r.sums(by_center)) {
        for (int n = 0; n < kGates; ++n) t.split.store_gradient(n, by_center[n], t.grad_logits[n], r.row);
      }
    }
  }
}

template <bool kBackward, bool kShare, class Split>
cudaError_t launch_tile_kernel(TileTensors<Split> t, cudaStream_t stream) {
  using T = typename Split::Number;
  if (t.gates > kMaxGates<T>) return cudaErrorInvalidValue;
  if (t.width / t.gates > kMaxChunk) return cudaErrorInvalidValue;
  t.chunk = static_cast<int>(t.width / t.gates);
  t.tiles = static_cast<int>((t.gates + kWarp - 1) / kWarp);
  t.warps_per_row = t.tiles <= kTilesOfOneWarp ? 1 : kTileWarps;
  const int64_t rows_per_block = kTileWarps / t.warps_per_row;
  const int64_t blocks = (t.rows + rows_per_block - 1) / rows_per_block;
  const unsigned grid =
      static_cast<unsigned>(blocks < std::numeric_limits<int>::max() ? blocks : std::numeric_limits<int>::max());
  const size_t bytes = rows_per_block * (kBackward ? 3 : 2) * Split::kGates * t.tiles * sizeof(T);
  constexpr int kThreads = kTileWarps * kWarp;
  if constexpr (kBackward) {
    partition_tile_backward<Split, kShare><<<grid, kThreads, bytes, stream>>>(t);
  } else {
    partition_tile_forward<Split, kShare><<<grid, kThreads, bytes, stream>>>(t);
  }
  return cudaGetLastError();
}

}  // namespace pgm_fast::cuda
