// Philox4x32-10 (Salmon et al., SC 2011): a block of four 32-bit words per counter, for CPU vectors and CUDA threads
// alike.
//
// W is 32-bit words with ^ and multiply(x, m, high, low): a CPU vector of them, or one word. How counters and words
// become the normals of a matrix is said in pgm_fast/ops/philox.py.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PGM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#elif !defined(PGM_FAST_HOST_DEVICE)
#define PGM_FAST_HOST_DEVICE inline
#endif

namespace pgm_fast {

constexpr int kPhiloxRounds = 10;
constexpr int64_t kNoiseLanes = 16;               // neighbouring columns that come from neighbouring blocks
constexpr int64_t kNoiseGroup = 4 * kNoiseLanes;  // columns that 16 blocks give

struct Word {
  uint32_t v;
  friend PGM_FAST_HOST_DEVICE Word operator^(Word a, Word b) { return {a.v ^ b.v}; }
  static PGM_FAST_HOST_DEVICE Word set(uint32_t x) { return {x}; }
  static PGM_FAST_HOST_DEVICE void multiply(Word x, uint32_t m, Word& high, Word& low) {
    const uint64_t product = uint64_t{x.v} * m;
    high.v = static_cast<uint32_t>(product >> 32);
    low.v = static_cast<uint32_t>(product);
  }
};

// The four words of each block, in place of its counter.
template <class W>
PGM_FAST_HOST_DEVICE void philox(W (&block)[4], uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    W high0, low0, high2, low2;
    W::multiply(block[0], 0xD2511F53u, high0, low0);
    W::multiply(block[2], 0xCD9E8D57u, high2, low2);
    block[0] = high2 ^ block[1] ^ W::set(k0);
    block[1] = low2;
    block[2] = high0 ^ block[3] ^ W::set(k1);
    block[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace pgm_fast
