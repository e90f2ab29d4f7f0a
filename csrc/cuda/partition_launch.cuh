// Which kernel serves a call.
#pragma once

#include "partition_rows.cuh"
#include "partition_tiles.cuh"

namespace pgm_fast::cuda {

// The tensors of a call: `part` are outputs forward and gradients backward. Split<double> becomes Split<float> where
// that serves.
template <template <class> class Split>
struct Call {
  Split<double> split;
  int64_t rows;
  Matrix h;
  Matrix logits[Split<double>::kGates];  // or boundaries
  Matrix part[Split<double>::kParts];
  Matrix share;  // as part, or null
  Matrix grad_h;
  Matrix grad_logits[Split<double>::kGates];
};

inline bool sixteen_bytes_apart(const Matrix& m) {
  const int64_t element = m.dtype == Dtype::float32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.width * element % 16 == 0;
}

// A row of shares is read and written at once.
inline bool aligned_share(const Matrix& m) {
  return m.data == nullptr || (m.dtype == Dtype::float32 && reinterpret_cast<uintptr_t>(m.data) % (m.width * 4) == 0);
}

// Whether every tensor but boundaries is like h and can be read 16 bytes at a time, and a row fits the registers of a
// block.
template <bool kBackward, template <class> class Split>
bool fits_registers(const Call<Split>& call) {
  const auto alike = [&](const Matrix& m) {
    return m.dtype == call.h.dtype && m.width == call.h.width && sixteen_bytes_apart(m);
  };
  bool fits =
      call.h.dtype != Dtype::float64 && call.h.width <= kMaxRegisterWidth && alike(call.h) && aligned_share(call.share);
  for (const Matrix& m : call.part) fits = fits && alike(m);
  if (kBackward) fits = fits && alike(call.grad_h);
  if constexpr (Split<float>::kLoaded) {
    for (const Matrix& m : call.logits) fits = fits && alike(m);
    if (kBackward) {
      for (const Matrix& m : call.grad_logits) fits = fits && alike(m);
    }
  }
  return fits;
}

template <bool kBackward, bool kShare, class T, template <class> class Split>
cudaError_t launch_tiles(const Call<Split>& call, cudaStream_t stream) {
  const int64_t gates = Split<T>::kLoaded ? call.logits[0].width : call.h.width;
  TileTensors<Split<T>> t{call.split.template to<T>(),
                          call.rows,
                          call.h.width,
                          gates,
                          0,
                          0,
                          0,
                          call.h,
                          {},
                          {},
                          call.share,
                          call.grad_h,
                          {}};
  for (int n = 0; n < Split<T>::kGates; ++n) {
    t.logits[n] = call.logits[n];
    t.grad_logits[n] = call.grad_logits[n];
  }
  for (int n = 0; n < Split<T>::kParts; ++n) t.part[n] = call.part[n];
  return launch_tile_kernel<kBackward, kShare>(t, stream);
}

template <bool kBackward, bool kShare, template <class> class Split>
cudaError_t launch_for(const Call<Split>& call, cudaStream_t stream) {
  if (call.h.dtype == Dtype::float64) return launch_tiles<kBackward, kShare, double>(call, stream);
  if (!fits_registers<kBackward>(call)) return launch_tiles<kBackward, kShare, float>(call, stream);
  using Rows = Split<float>;
  RowTensors<Rows> t{call.split.template to<float>(),
                     call.rows,
                     static_cast<int>(call.h.width),
                     call.h.data,
                     {},
                     {},
                     static_cast<float*>(call.share.data),
                     call.grad_h.data,
                     {}};
  for (int n = 0; n < Rows::kGates; ++n) {
    t.logits[n] = call.logits[n];
    t.grad_logits[n] = call.grad_logits[n];
  }
  for (int n = 0; n < Rows::kParts; ++n) t.part[n] = call.part[n].data;
  if (call.h.dtype == Dtype::bfloat16) return launch_row_kernel<Rows, __nv_bfloat16, kBackward, kShare>(t, stream);
  if (call.h.dtype == Dtype::float16) return launch_row_kernel<Rows, __half, kBackward, kShare>(t, stream);
  return launch_row_kernel<Rows, float, kBackward, kShare>(t, stream);
}

template <bool kBackward, template <class> class Split>
cudaError_t launch_partition(const Call<Split>& call, cudaStream_t stream) {
  if (call.rows == 0) return cudaSuccess;
  return call.share.data == nullptr ? launch_for<kBackward, false>(call, stream)
                                    : launch_for<kBackward, true>(call, stream);
}

}  // namespace pgm_fast::cuda
