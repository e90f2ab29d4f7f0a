// What the kernels of csrc/cuda use of CUDA, on the CPU: every thread of a block is a fiber, blocks come one after the other. A fiber
// gives way only where it waits for others, at barriers and warp exchanges, so a missing one shows as a wrong number and one that not
// all reach as an abort.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n)
#define __builtin_assume(x)

struct uint4 {
  unsigned x, y, z, w;
};
struct float2 {
  float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __uint_as_float(unsigned u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

namespace emulated {

constexpr int kLanes = 32;
constexpr size_t kStack = 64 * 1024;

struct Index {
  unsigned x;
};

// Threads that wait for each other.
struct Group {
  int threads = 0, arrived = 0;
  uint64_t generation = 0;
};
struct Warp : Group {
  uint64_t slots[2][kLanes];
};

struct Fiber {
  ucontext_t context;
  Index index;
  Warp* warp;
  uint64_t exchanges = 0;
  bool done = false;
};

inline Fiber* current;
inline ucontext_t scheduler;
inline Group block;
inline Index block_index, block_size, grid_size;
inline std::vector<unsigned char> dynamic;
inline const std::function<void()>* kernel;
inline uint64_t progress;
inline std::vector<std::unique_ptr<char[]>> stacks;  // of every thread that there ever was, used again by later blocks

inline void yield() { swapcontext(&current->context, &scheduler); }

inline void wait(Group& group) {
  const uint64_t generation = group.generation;
  if (++group.arrived == group.threads) {
    group.arrived = 0;
    ++group.generation;
    ++progress;
    return;
  }
  while (group.generation == generation) yield();
}

template <class T>
T exchange(T x, int from) {
  auto& slots = current->warp->slots[current->exchanges++ % 2];
  std::memcpy(&slots[current->index.x % kLanes], &x, sizeof x);
  wait(*current->warp);
  T other;
  std::memcpy(&other, &slots[from], sizeof other);
  return other;
}

inline void enter() {
  (*kernel)();
  current->done = true;
  ++progress;
  yield();
}

inline void run_block(unsigned threads) {
  std::vector<Warp> warps((threads + kLanes - 1) / kLanes);
  std::vector<Fiber> fibers(threads);
  block = Group();
  block.threads = static_cast<int>(threads);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.index = {t};
    fiber.warp = &warps[t / kLanes];
    ++fiber.warp->threads;
    if (t == stacks.size()) stacks.emplace_back(new char[kStack]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks[t].get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  for (unsigned left = threads; left > 0;) {
    const uint64_t before = progress;
    // from the last to the first: results must not hang on thread 0 running first
    for (unsigned t = threads; t-- > 0;) {
      if (fibers[t].done) continue;
      current = &fibers[t];
      swapcontext(&scheduler, &current->context);
      if (fibers[t].done) --left;
    }
    if (progress == before) {
      std::fprintf(stderr, "the threads of a block wait for each other at different places\n");
      std::abort();
    }
  }
}

inline void launch(unsigned grid, unsigned threads, size_t bytes, cudaStream_t, const std::function<void()>& run) {
  kernel = &run;
  grid_size = {grid};
  block_size = {threads};
  for (unsigned b = 0; b < grid; ++b) {
    dynamic.assign(bytes, 0xff);  // NaN
    block_index = {b};
    run_block(threads);
  }
}

}  // namespace emulated

#define threadIdx (emulated::current->index)
#define blockIdx (emulated::block_index)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

inline void __syncthreads() { emulated::wait(emulated::block); }
inline void __syncwarp() { emulated::wait(*emulated::current->warp); }
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* to, unsigned x) {
  const unsigned before = *to;
  *to += x;
  return before;
}

namespace emulated {
inline int lane() { return static_cast<int>(current->index.x % kLanes); }
}  // namespace emulated
template <class T>
T __shfl_sync(unsigned, T x, int from) {
  return emulated::exchange(x, from % emulated::kLanes);
}
template <class T>
T __shfl_up_sync(unsigned, T x, int distance) {
  const int from = emulated::lane() - distance;
  return emulated::exchange(x, from < 0 ? emulated::lane() : from);
}
template <class T>
T __shfl_down_sync(unsigned, T x, int distance) {
  const int from = emulated::lane() + distance;
  return emulated::exchange(x, from >= emulated::kLanes ? emulated::lane() : from);
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulated::exchange(x, emulated::lane() ^ mask);
}
