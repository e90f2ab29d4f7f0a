// Tensors as the kernels see them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <optional>

#include "../cpu/kernels.h"

namespace pgm_fast::host {

inline cpu::Dtype dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return cpu::Dtype::float32;
    case at::kDouble:
      return cpu::Dtype::float64;
    case at::kBFloat16:
      return cpu::Dtype::bfloat16;
    case at::kHalf:
      return cpu::Dtype::float16;
    default:
      TORCH_CHECK(false, "pgm_fast's kernels take float32, float64, bfloat16 and float16, got ", x.scalar_type());
  }
}

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& x) {
  return x ? std::optional<at::Tensor>(x->contiguous()) : std::nullopt;
}

// What sums of numbers of this dtype are held in.
inline at::ScalarType accumulation(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Weights of the rows x[B, d] of a loss in that dtype; none are those of a mean.
inline at::Tensor weights_or_mean(const std::optional<at::Tensor>& weight, const at::Tensor& x) {
  if (weight) return weight->to(accumulation(x)).contiguous();
  return at::full({x.size(0)}, 1.0 / std::max<int64_t>(x.size(0), 1), x.options().dtype(accumulation(x)));
}

// The number of rows of h[..., d].
inline int64_t rows_of(const at::Tensor& h) {
  TORCH_CHECK(h.dim() > 0 && h.size(-1) > 0, "pgm_fast's kernels take [..., d] with d >= 1, got ", h.sizes());
  return h.numel() / h.size(-1);
}

// x[begin : begin + n] of a contiguous tensor, for kernels and for products below autograd: narrow takes ten times as
// long, which counts where a block of rows is a few microseconds of work.
inline at::Tensor rows_of(const at::Tensor& x, int64_t begin, int64_t n) {
  auto view =
      c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(x.storage()), x.key_set(), x.dtype());
  view->set_storage_offset(x.storage_offset() + begin * x.stride(0));
  at::DimVector sizes(x.sizes());
  sizes[0] = n;
  view->set_sizes_contiguous(sizes);
  return at::Tensor(std::move(view));
}

namespace detail {
inline cpu::Matrix matrix(const at::Tensor& x, void* data, int64_t rows) {
  const int64_t width = x.dim() == 0 ? 0 : x.size(-1);
  TORCH_CHECK(width > 0 && x.numel() == rows * width, "pgm_fast's kernels take operands of ", rows, " rows, got ",
              x.sizes());
  return {data, dtype_of(x), width};
}
}  // namespace detail

// A contiguous tensor as [rows, its last dimension], to read and to write. Reading must not copy a lazy clone, hence
// the cast.
inline cpu::Matrix input(const at::Tensor& x, int64_t rows) {
  return detail::matrix(x, const_cast<void*>(x.const_data_ptr()), rows);
}
inline cpu::Matrix output(const at::Tensor& x, int64_t rows) { return detail::matrix(x, x.mutable_data_ptr(), rows); }

template <class... Others>
void check_same_width(const cpu::Matrix& first, const Others&... others) {
  TORCH_CHECK(((first.width == others.width) && ...), "pgm_fast's kernels take operands of one width here");
}

// The gradient of a share, contiguous or none, as the kernels take it.
inline cpu::Matrix input_share(const std::optional<at::Tensor>& grad_share, int64_t rows, int64_t partitions) {
  if (!grad_share) return {};
  const auto found = input(*grad_share, rows);
  TORCH_CHECK(found.width == partitions, "pgm_fast's kernels take gradients of ", partitions, " shares here, got ",
              found.width);
  return found;
}

// Memory for the shares of gates of these logits, or boundaries.
inline at::Tensor empty_share(const at::Tensor& z, int64_t partitions) {
  auto sizes = z.sizes().vec();
  sizes.back() = partitions;
  return at::empty(sizes, z.options().dtype(accumulation(z)));
}

inline void check_vector(const at::Tensor& x, int64_t size) {
  TORCH_CHECK(x.dim() == 1 && x.size(0) == size, "pgm_fast's kernels take [", size, "] here, got ", x.sizes());
}

inline void check_gates(const cpu::Matrix& h, const cpu::Matrix& z) {
  TORCH_CHECK(h.width % z.width == 0, "pgm_fast's kernels take a number of gates that divides d = ", h.width, ", got ",
              z.width);
}

}  // namespace pgm_fast::host
