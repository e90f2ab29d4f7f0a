// Rows shared out among threads, each of which takes its own through several steps with what lies between two of them
// in its cache.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include "operands.h"

namespace pgm_fast::host {

// [0, rows) in blocks, one or more per thread.
struct RowBlocks {
  // Rows that a thread takes at a time: fewer leave the products slow, more leave the cache.
  static constexpr int64_t kLeast = 16, kMost = 128;

  int64_t rows, size, count;

  explicit RowBlocks(int64_t rows_) : rows(rows_) {
    const int64_t threads = at::get_num_threads();
    size = std::clamp((rows + threads - 1) / threads, kLeast, kMost);
    count = (rows + size - 1) / size;
  }

  // Calls body(first, last) in each thread, with its blocks.
  template <class Body>
  void each(Body&& body) const {
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      // threads of a parallel region know nothing of the caller's dispatch state
      const at::AutoDispatchBelowADInplaceOrView below;
      body(first, last);
    });
  }

  int64_t rows_of(int64_t block) const { return std::min(size, rows - block * size); }
  // A block's rows of x, and the first rows of a thread's memory, as many as the block has.
  at::Tensor part(const at::Tensor& x, int64_t block) const {
    return count == 1 ? x : host::rows_of(x, block * size, rows_of(block));
  }
  at::Tensor memory(const at::Tensor& x, int64_t block) const {
    const int64_t n = rows_of(block);
    return x.size(0) == n ? x : host::rows_of(x, 0, n);
  }
  // What dropout keeps of a block's hidden features; a null matrix is all of them.
  cpu::Matrix kept(const std::optional<at::Tensor>& keep, int64_t block) const {
    if (!keep) return {nullptr, cpu::Dtype::float32, 1};
    return input(part(*keep, block), rows_of(block));
  }
};

// Gradients of weights, products over all rows, one to a thread.
class Tasks {
 public:
  void add(std::function<void()> task) { tasks_.push_back(std::move(task)); }

  void run(int64_t rows) const {
    const auto part = [&](int64_t first, int64_t last) {
      const at::AutoDispatchBelowADInplaceOrView below;
      for (int64_t task = first; task < last; ++task) tasks_[task]();
    };
    const auto count = static_cast<int64_t>(tasks_.size());
    if (rows <= kRowsForOneThread) {
      at::parallel_for(0, count, 1, part);
    } else {
      part(0, count);
    }
  }

 private:
  // Up to here a gradient is worth one thread; beyond, torch's products share each out among all.
  static constexpr int64_t kRowsForOneThread = 1024;

  std::vector<std::function<void()>> tasks_;
};

}  // namespace pgm_fast::host
