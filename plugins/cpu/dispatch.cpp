// Asks the processor what it can run (cpuid, through the compiler's built-in).
#include "dispatch.h"

#include <string_view>

#include "spectral/error.h"

namespace spectral::cpu {
namespace {

std::vector<const Kernels *> available() {
    std::vector<const Kernels *> out;
#if defined(SPECTRAL_X86_KERNELS)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
        out.push_back(&kernels_avx512());
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out.push_back(&kernels_avx2());
    }
#endif
    out.push_back(&kernels_portable());
    return out;
}

} // namespace

std::vector<std::string> available_simd() {
    std::vector<std::string> names;
    for (const Kernels *kernels : available()) {
        names.emplace_back(kernels->name);
    }
    return names;
}

const Kernels &kernels_for(const char *simd) {
    std::string known = "auto";
    for (const Kernels *kernels : available()) {
        if (std::string_view(simd) == "auto" || std::string_view(simd) == kernels->name) {
            return *kernels;
        }
        known += std::string(", ") + kernels->name;
    }
    throw UserError("simd", "one of " + known, simd);
}

} // namespace spectral::cpu
