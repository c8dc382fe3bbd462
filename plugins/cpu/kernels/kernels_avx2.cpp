// The kernels compiled for avx2; see kernels.h for what such a file may not include.
#include "kernels.h"

#include <immintrin.h>

#include <cstdint>

namespace spectral::cpu {
namespace {
#include "simd_avx2.h"

#include "choice.inl"
#include "multiply.inl"
#include "project.inl"
#include "select.inl"

// Built on the selection above.
#include "scan.inl"

#include "search.inl"
} // namespace

const Kernels &kernels_avx2() {
    static constexpr Kernels table{"avx2", &project, &multiply, &score, &scan, &search, &finish};
    return table;
}

} // namespace spectral::cpu
