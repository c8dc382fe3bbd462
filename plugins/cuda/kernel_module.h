// The embedded kernels of one context: loaded on first use, found by name, launched on a stream.
#pragma once

#include <cstdint>
#include <string>

#include "driver_api.h"

namespace spectral::cuda {

/// Why this build or this machine has no CUDA kernels, or empty.
std::string cuda_absent();

/// A kernel of the embedded fatbins in the current context. Throws UserError when the GPU is none
/// of those compiled for. Loading is not allowed while a stream captures: call once before.
Function kernel_named(const std::string &name, Context context);

/// How a kernel is launched: a cluster of blocks of 256 threads for every tile of tokens.
struct Launch {
    std::uint32_t tiles = 0;
    std::uint32_t cluster = 1;
    std::uint32_t shared_bytes = 0;
    Stream stream = nullptr;
    /// May be set up while the kernel before it ends, for which it then waits.
    bool overlaps = false;
};

/// Whether this GPU and this driver, also while a stream captures, know launches that overlap.
bool may_overlap(const DeviceFacts &facts);

/// Launches with one struct as the only argument.
void launch(Function function, const Launch &how, void *arguments);

} // namespace spectral::cuda
