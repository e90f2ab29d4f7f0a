// Elements of any floating dtype in memory, float (double for float64) in registers: single ones, and 16 bytes at a
// time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../common/matrix.h"

namespace pgm_fast::cuda {

// Sixteen bytes of S, the widest access of a thread.
template <class S>
struct Sixteen;

template <>
struct Sixteen<float> {
  static constexpr int size = 4;
  static constexpr unsigned kNegativeInfinity = 0xff800000u;
  uint4 words;

  __device__ __forceinline__ void unpack(float (&x)[size]) const {
    x[0] = __uint_as_float(words.x);
    x[1] = __uint_as_float(words.y);
    x[2] = __uint_as_float(words.z);
    x[3] = __uint_as_float(words.w);
  }
  __device__ __forceinline__ void pack(const float (&x)[size]) {
    words = make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
  }
};

__device__ __forceinline__ float2 unpack_pair(uint32_t word, __nv_bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack_pair(uint32_t word, __half) {
  __half2 pair;
  memcpy(&pair, &word, sizeof pair);
  return __half22float2(pair);
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

// Two negative infinities in one word.
constexpr unsigned negative_infinities(__nv_bfloat16) { return 0xff80ff80u; }
constexpr unsigned negative_infinities(__half) { return 0xfc00fc00u; }

// bfloat16 and float16.
template <class S>
struct Sixteen {
  static constexpr int size = 8;
  static constexpr unsigned kNegativeInfinity = negative_infinities(S{});
  uint4 words;

  __device__ __forceinline__ void unpack(float (&x)[size]) const {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 pair = unpack_pair(word[k], S{});
      x[2 * k] = pair.x;
      x[2 * k + 1] = pair.y;
    }
  }
  __device__ __forceinline__ void pack(const float (&x)[size]) {
    words = make_uint4(pack_pair(x[0], x[1], S{}), pack_pair(x[2], x[3], S{}), pack_pair(x[4], x[5], S{}),
                       pack_pair(x[6], x[7], S{}));
  }
};

// Elements from `at` on, at a multiple of 16 bytes.
template <class S>
__device__ __forceinline__ Sixteen<S> load_sixteen(const void* base, int64_t at) {
  return {*reinterpret_cast<const uint4*>(static_cast<const S*>(base) + at)};
}
// The same, or `word` four times where they are not `inside`.
template <class S>
__device__ __forceinline__ Sixteen<S> load_sixteen_or(unsigned word, bool inside, const void* base, int64_t at) {
  Sixteen<S> loaded{make_uint4(word, word, word, word)};
  if (inside) loaded = load_sixteen<S>(base, at);
  return loaded;
}
template <class S, int N>
__device__ __forceinline__ void store_sixteen(const float (&x)[N], void* base, int64_t at) {
  Sixteen<S> sixteen;
  sixteen.pack(x);
  *reinterpret_cast<uint4*>(static_cast<S*>(base) + at) = sixteen.words;
}

// Two or four floats at a multiple of their size.
__device__ __forceinline__ void load_floats(const void* from, float (&x)[2]) {
  const float2 pair = *static_cast<const float2*>(from);
  x[0] = pair.x;
  x[1] = pair.y;
}
__device__ __forceinline__ void load_floats(const void* from, float (&x)[4]) {
  Sixteen<float>{*static_cast<const uint4*>(from)}.unpack(x);
}
__device__ __forceinline__ void store_floats(const float (&x)[2], void* to) {
  *static_cast<float2*>(to) = make_float2(x[0], x[1]);
}
__device__ __forceinline__ void store_floats(const float (&x)[4], void* to) {
  Sixteen<float> sixteen;
  sixteen.pack(x);
  *static_cast<uint4*>(to) = sixteen.words;
}

// One element of a matrix whose dtype is known at run time only; double for float64 matrices, float for the others.
template <class T>
__device__ __forceinline__ T load_one(const Matrix& from, int64_t element);
template <>
__device__ __forceinline__ double load_one<double>(const Matrix& from, int64_t element) {
  return static_cast<const double*>(from.data)[element];
}
template <>
__device__ __forceinline__ float load_one<float>(const Matrix& from, int64_t element) {
  if (from.dtype == Dtype::bfloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(from.data)[element]);
  if (from.dtype == Dtype::float16) return __half2float(static_cast<const __half*>(from.data)[element]);
  return static_cast<const float*>(from.data)[element];
}
__device__ __forceinline__ void store_one(double x, const Matrix& to, int64_t element) {
  static_cast<double*>(to.data)[element] = x;
}
__device__ __forceinline__ void store_one(float x, const Matrix& to, int64_t element) {
  if (to.dtype == Dtype::bfloat16) {
    static_cast<__nv_bfloat16*>(to.data)[element] = __float2bfloat16_rn(x);
  } else if (to.dtype == Dtype::float16) {
    static_cast<__half*>(to.data)[element] = __float2half_rn(x);
  } else {
    static_cast<float*>(to.data)[element] = x;
  }
}

}  // namespace pgm_fast::cuda
