// Which kernel serves a call.
#pragma once

#include "partition_rows.cuh"
#include "partition_tiles.cuh"

namespace pgm_fast::cuda {

// The tensors of a call: `part` are outputs forward and gradients backward.
template <class Split>
struct Call {
  int64_t rows;
  double temperature;
  Matrix h;
  Matrix z[Split::kGates];
  Matrix part[Split::kParts];
  Matrix share;  // as part, or null
  Matrix grad_h;
  Matrix grad_z[Split::kGates];
};

inline bool sixteen_bytes_apart(const Matrix& m) {
  const int64_t element = m.dtype == Dtype::float32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.width * element % 16 == 0;
}

// A row of shares is read and written at once.
inline bool aligned_share(const Matrix& m) {
  return m.data == nullptr || (m.dtype == Dtype::float32 && reinterpret_cast<uintptr_t>(m.data) % (m.width * 4) == 0);
}

// Whether every tensor is like h and can be read 16 bytes at a time, and a row fits the registers of a block.
template <class Split, bool kBackward>
bool fits_registers(const Call<Split>& call) {
  const auto alike = [&](const Matrix& m) {
    return m.dtype == call.h.dtype && m.width == call.h.width && sixteen_bytes_apart(m);
  };
  bool fits = call.h.dtype != Dtype::float64 && call.h.width <= kMaxRegisterWidth && alike(call.h) && aligned_share(call.share);
  for (const Matrix& m : call.z) fits = fits && alike(m);
  for (const Matrix& m : call.part) fits = fits && alike(m);
  if (kBackward) {
    fits = fits && alike(call.grad_h);
    for (const Matrix& m : call.grad_z) fits = fits && alike(m);
  }
  return fits;
}

template <bool kBackward, bool kShare, class Split>
cudaError_t launch_for(const Call<Split>& call, cudaStream_t stream) {
  if (!fits_registers<Split, kBackward>(call)) {
    TileTensors<Split> t{call.rows, call.h.width, call.z[0].width, 1.0 / call.temperature, 0, 0, 0, call.h, {}, {}, call.share,
                         call.grad_h, {}};
    for (int n = 0; n < Split::kGates; ++n) {
      t.z[n] = call.z[n];
      t.grad_z[n] = call.grad_z[n];
    }
    for (int n = 0; n < Split::kParts; ++n) t.part[n] = call.part[n];
    return launch_tile_kernel<Split, kBackward, kShare>(t, call.h.dtype == Dtype::float64, stream);
  }
  RowTensors<Split> t{call.rows, static_cast<int>(call.h.width), static_cast<float>(1.0 / call.temperature), call.h.data, {}, {},
                      static_cast<float*>(call.share.data), call.grad_h.data, {}};
  for (int n = 0; n < Split::kGates; ++n) {
    t.z[n] = call.z[n].data;
    t.grad_z[n] = call.grad_z[n].data;
  }
  for (int n = 0; n < Split::kParts; ++n) t.part[n] = call.part[n].data;
  if (call.h.dtype == Dtype::bfloat16) return launch_row_kernel<Split, __nv_bfloat16, kBackward, kShare>(t, stream);
  if (call.h.dtype == Dtype::float16) return launch_row_kernel<Split, __half, kBackward, kShare>(t, stream);
  return launch_row_kernel<Split, float, kBackward, kShare>(t, stream);
}

template <bool kBackward, class Split>
cudaError_t launch_partition(const Call<Split>& call, cudaStream_t stream) {
  if (call.rows == 0) return cudaSuccess;
  return call.share.data == nullptr ? launch_for<kBackward, false>(call, stream) : launch_for<kBackward, true>(call, stream);
}

}  // namespace pgm_fast::cuda
