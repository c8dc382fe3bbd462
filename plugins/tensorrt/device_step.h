// Launches the routing-step kernel on device pointers: the CUDA tactic.
#pragma once

#include <cstddef>
#include <string>

#include "kernels/step_arguments.h"

namespace spectral::trt {

/// Why this build or this machine cannot launch, or empty. Loads the kernel into the current
/// context.
std::string step_absent();

/// Blocks for that many tokens, and the bytes of workspace they need.
int step_blocks_for(std::int64_t tokens);
std::size_t step_workspace(const RouteSpec &spec, std::int64_t tokens);

/// Enqueues one launch: no allocation, no synchronisation, capturable once `step_absent` has been
/// asked. Throws UserError when the driver refuses.
void launch_step(const StepArguments &arguments, void *stream);

} // namespace spectral::trt
