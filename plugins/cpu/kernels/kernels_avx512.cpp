// The kernels compiled for avx512; see kernels.h for what such a file may not include.
#include "kernels.h"

#include <immintrin.h>

#include <cstdint>

namespace spectral::cpu {
namespace {
#include "simd_avx512.h"

#include "choice.inl"
#include "multiply.inl"
#include "project.inl"
#include "select.inl"

// Built on the selection above.
#include "scan.inl"

#include "search.inl"
} // namespace

const Kernels &kernels_avx512() {
    static constexpr Kernels table{"avx512", &project, &multiply, &score, &scan, &search, &finish};
    return table;
}

} // namespace spectral::cpu
