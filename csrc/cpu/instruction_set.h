// Whether this CPU has the instruction set that the kernels were built for. Included where the baseline is compiled.
#pragma once

#include <string>

namespace pgm_fast::cpu {

inline bool cpu_has(const std::string& instruction_set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (instruction_set == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (instruction_set == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return instruction_set == "scalar";
}

}  // namespace pgm_fast::cpu
