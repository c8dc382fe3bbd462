// Chooses the kernels for this processor.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace spectral::cpu {

/// Names of the instruction sets that this build has and this processor runs, best first.
std::vector<std::string> available_simd();

/// The kernels named, or the best for "auto". Throws UserError if the processor cannot run them.
/// A plain pointer: g++ 13 suspects a reference returned beside a temporary string to dangle.
const Kernels &kernels_for(const char *simd);

} // namespace spectral::cpu
