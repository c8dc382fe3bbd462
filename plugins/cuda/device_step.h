// The whole routing step as one kernel on device pointers, for the libraries of other runtimes.
#pragma once

#include <cstddef>
#include <string>

#include "driver_api.h"
#include "kernels/step_arguments.h"

namespace spectral::cuda {

/// Why this build or this machine cannot launch, or empty. Loads the kernel into the current
/// context.
std::string step_absent();

/// Whether this build has the kernel and this machine a driver.
bool step_present();

/// Throws UserError when the kernel has no room for this step.
void check_step(const RouteSpec &spec);

/// Blocks for that many tokens, and the bytes of workspace they need.
int step_blocks_for(std::int64_t tokens);
std::size_t step_workspace(const RouteSpec &spec, std::int64_t tokens);

/// The device of the caller's context, or the first. Throws UserError without a driver.
Device current_device();

/// Enqueues one launch: no allocation, no synchronisation, capturable once `step_absent` has been
/// asked. Throws UserError when the driver refuses.
void launch_step(const StepArguments &arguments, void *stream);

} // namespace spectral::cuda
