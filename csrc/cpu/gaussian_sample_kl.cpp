// Reparameterised sample of a diagonal Gaussian and its KL divergence per row, forward and backward. One pass over each
// row; the noise is made anew from its counters in backward and exists as one row in scratch.
#include <type_traits>

#include "gates.h"
#include "kernels.h"
#include "noise.h"
#include "stores.h"

namespace pgm_fast::cpu {
namespace {

// run(given, sampled) with both known at compile time: is there a prior, is there a sample.
template <class Run>
void choose(bool given, bool sampled, Run&& run) {
  if (given) {
    sampled ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
  } else {
    sampled ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
  }
}

// exp(r) - 1 - r for r between -1 and 1, r^2 (1/2 + r/3! + r^2/4! ...): the difference has no correct digit where a
// posterior is near its prior.
template <class V>
PGM_FAST_INLINE inline V series(V r) {
  // what is left out is below 2^-24, or 2^-53, of the first term; a single lane is a double
  constexpr int terms = V::width == 1 ? 19 : 12;
  const V one = V::set(1);
  V total = one;
  for (int n = terms; n > 2; --n) total = multiply_add(r * V::set(1.0 / n), total, one);
  return r * r * V::set(0.5) * total;
}

// exp(r) - 1 - r of r and exp(r)
template <class V>
PGM_FAST_INLINE inline V exp_less_line(V r, V exponential) {
  const V one = V::set(1);
  return (r * r - one).pick_below_zero(series(r), exponential - one - r);
}

// exp(r) - 1 of r and exp(r)
template <class V>
PGM_FAST_INLINE inline V exp_less_one(V r, V exponential) {
  const V one = V::set(1);
  return (r * r - one).pick_below_zero(r + series(r), exponential - one);
}

int64_t padded(int64_t d) { return (d + kNoiseGroup - 1) / kNoiseGroup * kNoiseGroup; }

}  // namespace

void gaussian_sample_kl(int64_t rows, int64_t d, int64_t layers, Matrix mu, Matrix logvar, Matrix prior_mu,
                        Matrix prior_logvar, uintptr_t seed, Matrix z, uintptr_t kl, int threads) {
  const int64_t each = d / layers;
  const uint64_t key = seed ? *reinterpret_cast<const uint64_t*>(seed) : 0;
  const bool bypass = seed && each % 16 == 0 && bypasses_cache(rows, {mu, logvar, z});
  dispatch(mu.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    T* const divergence = reinterpret_cast<T*>(kl);
    choose(prior_mu.data, seed, [&](auto given, auto sampled) {
      parallel_rows(rows, 4 * d, threads, [&](int64_t begin, int64_t end) {
        Scratch<T> scratch(6, padded(d));
        const V half = V::set(0.5), zero = V::set(0);
        for (int64_t row = begin; row < end; ++row) {
          const T* m = read(mu, row, scratch[0]);
          const T* l = read(logvar, row, scratch[1]);
          const T* pm = given ? read(prior_mu, row, scratch[2]) : nullptr;
          const T* pl = given ? read(prior_logvar, row, scratch[3]) : nullptr;
          T* const noise = scratch[4];
          T* const sample = sampled ? target(z, row, scratch[5]) : nullptr;
          if (sampled) noise_row<V>(key, row, d, noise);
          for (int64_t layer = 0; layer < layers; ++layer) {
            const int64_t first = layer * each;
            V total = zero;
            T rest = 0;
            for_each_vector<V>(each, [&](int64_t at, auto part) {
              const int64_t k = first + at;
              const V mean = part.load(m + k), log_variance = part.load(l + k);
              V scale = zero, term = zero;
              if constexpr (sampled) {
                scale = V::exp(half * log_variance);
                const V value = mean + scale * part.load(noise + k);
                bypass ? value.stream(sample + k) : part.store(value, sample + k);
              }
              if constexpr (given) {
                const V prior = part.load(pl + k), ratio = log_variance - prior, shift = mean - part.load(pm + k);
                term = exp_less_line(ratio, V::exp(ratio)) + shift * shift * V::exp(zero - prior);
              } else {
                const V variance = sampled ? scale * scale : V::exp(log_variance);
                term = exp_less_line(log_variance, variance) + mean * mean;
              }
              if constexpr (std::is_same_v<decltype(part), Full<V>>) {
                total = total + term;
              } else {
                T lanes[V::width];
                term.store(lanes);
                for (int64_t lane = 0; lane < part.n; ++lane) rest += lanes[lane];
              }
            });
            divergence[row * layers + layer] = T(0.5) * (total.sum() + rest) / T(each);
          }
          if (sampled) {
            Matrix shown = z;
            shown.width = d;
            finish(shown, row, sample);
          }
        }
        stream_fence();
      });
    });
  });
}

void gaussian_sample_kl_backward(int64_t rows, int64_t d, int64_t layers, Matrix grad_kl, Matrix grad_z, Matrix mu,
                                 Matrix logvar, Matrix prior_mu, Matrix prior_logvar, uintptr_t seed, Matrix grad_mu,
                                 Matrix grad_logvar, Matrix grad_prior_mu, Matrix grad_prior_logvar, int threads) {
  const int64_t each = d / layers;
  const uint64_t key = seed ? *reinterpret_cast<const uint64_t*>(seed) : 0;
  const bool bypass = each % 16 == 0 && bypasses_cache(rows, {mu, logvar, grad_mu, grad_logvar});
  dispatch(mu.dtype, [&](auto vector) {
    using V = decltype(vector);
    using T = typename V::value;
    const T* const by_kl = static_cast<const T*>(grad_kl.data);
    choose(prior_mu.data, seed, [&](auto given, auto sampled) {
      parallel_rows(rows, 4 * d, threads, [&](int64_t begin, int64_t end) {
        Scratch<T> scratch(10, padded(d));
        const V one = V::set(1), half = V::set(0.5), zero = V::set(0);
        for (int64_t row = begin; row < end; ++row) {
          const T* m = read(mu, row, scratch[0]);
          const T* l = read(logvar, row, scratch[1]);
          const T* pm = given ? read(prior_mu, row, scratch[2]) : nullptr;
          const T* pl = given ? read(prior_logvar, row, scratch[3]) : nullptr;
          const T* by_z = sampled ? read(grad_z, row, scratch[4]) : nullptr;
          T* const noise = scratch[5];
          T* const dm = target(grad_mu, row, scratch[6]);
          T* const dl = target(grad_logvar, row, scratch[7]);
          T* const dpm = given ? target(grad_prior_mu, row, scratch[8]) : nullptr;
          T* const dpl = given ? target(grad_prior_logvar, row, scratch[9]) : nullptr;
          if (sampled) noise_row<V>(key, row, d, noise);
          for (int64_t layer = 0; layer < layers; ++layer) {
            const int64_t first = layer * each;
            const V weight = V::set(by_kl[row * grad_kl.width + layer] / T(each));
            for_each_vector<V>(each, [&](int64_t at, auto part) {
              const int64_t k = first + at;
              const V mean = part.load(m + k), log_variance = part.load(l + k);
              V shift = mean, precision = one, ratio = log_variance, scale = zero, variance = zero;
              if constexpr (sampled) scale = V::exp(half * log_variance);
              if constexpr (given) {
                const V prior = part.load(pl + k);
                shift = mean - part.load(pm + k);
                precision = V::exp(zero - prior);
                ratio = log_variance - prior;
                variance = V::exp(ratio);
              } else {
                variance = sampled ? scale * scale : V::exp(ratio);
              }
              const V by_mean = weight * shift * precision;
              const V by_log_variance = half * weight * exp_less_one(ratio, variance);
              if constexpr (given) {
                part.store(zero - by_mean, dpm + k);
                part.store(zero - by_log_variance - half * by_mean * shift, dpl + k);
              }
              V by_m = by_mean, by_l = by_log_variance;
              if constexpr (sampled) {
                const V incoming = part.load(by_z + k);
                by_m = by_m + incoming;
                by_l = by_l + half * incoming * scale * part.load(noise + k);
              }
              if (bypass) {
                by_m.stream(dm + k);
                by_l.stream(dl + k);
              } else {
                part.store(by_m, dm + k);
                part.store(by_l, dl + k);
              }
            });
          }
          finish(grad_mu, row, dm);
          finish(grad_logvar, row, dl);
          if (given) {
            finish(grad_prior_mu, row, dpm);
            finish(grad_prior_logvar, row, dpl);
          }
        }
        stream_fence();
      });
    });
  });
}

}  // namespace pgm_fast::cpu
