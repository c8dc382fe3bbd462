// The kernels compiled for portable; see kernels.h for what such a file may not include.
#include "kernels.h"

#include <cstdint>

namespace spectral::cpu {
namespace {
#include "simd_portable.h"

#include "choice.inl"
#include "multiply.inl"
#include "project.inl"
#include "select.inl"

// Built on the selection above.
#include "scan.inl"

#include "search.inl"
} // namespace

const Kernels &kernels_portable() {
    static constexpr Kernels table{"portable", &project, &multiply, &score,
                                   &scan,      &search,  &finish};
    return table;
}

} // namespace spectral::cpu
