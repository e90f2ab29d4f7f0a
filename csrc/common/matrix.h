// A tensor as the kernels see it: rows of one floating dtype.
#pragma once

#include <cstdint>

namespace pgm_fast {

enum class Dtype : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

// A contiguous [rows, width] tensor.
struct Matrix {
  void* data;
  Dtype dtype;
  int64_t width;
};

}  // namespace pgm_fast
