// Chooses the kernels for this processor.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace spectral::cpu {

/// Names of the instruction sets that this build has and this processor runs, best first.
std::vector<std::string> available_simd();

/// The kernels named, or the best for "auto". Throws UserError if the processor cannot run them.
const Kernels &kernels_for(const std::string &simd);

} // namespace spectral::cpu
