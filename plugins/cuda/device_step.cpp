// The step kernel's module, loaded once per context through the driver table.
#include "device_step.h"

#include <algorithm>

#include "spectral/error.h"

#if defined(SPECTRAL_STEP_KERNEL)
#include <map>
#include <mutex>

extern const unsigned char spectral_step_fatbin[];
#endif

namespace spectral::cuda {

void check_step(const RouteSpec &spec) {
    if (spec.rule.groups > 64 || (spec.geometric() && spec.rows() > max_rows)) {
        throw UserError("BvhRoute",
                        "at most 64 groups and " + std::to_string(max_rows) + " coordinates",
                        std::to_string(spec.rule.groups) + " and " + std::to_string(spec.rows()));
    }
}

Device current_device() {
    Device device = 0;
    Context current = nullptr;
    check(driver().context_get(&current), "cuCtxGetCurrent");
    if (current != nullptr) {
        check(driver().context_device(&device), "cuCtxGetDevice");
    }
    return device;
}

int step_blocks_for(std::int64_t tokens) {
    return static_cast<int>(std::clamp<std::int64_t>(tokens, 1, step_blocks));
}

std::size_t step_workspace(const RouteSpec &spec, std::int64_t tokens) {
    return static_cast<std::size_t>(step_blocks_for(tokens)) * 3 *
           static_cast<std::size_t>(spec.rule.experts) * sizeof(float);
}

#if defined(SPECTRAL_STEP_KERNEL)

namespace {

Function step_function(Context context) {
    static std::mutex mutex;
    static std::map<Context, Function> functions;
    const std::scoped_lock lock(mutex);
    Function &function = functions[context];
    if (function == nullptr) {
        Module module = nullptr;
        check(driver().module_load(&module, spectral_step_fatbin), "cuModuleLoadData");
        check(driver().module_function(&function, module, "spectral_route_step"),
              "cuModuleGetFunction");
    }
    return function;
}

} // namespace

bool step_present() {
    return driver_absent().empty();
}

std::string step_absent() {
    if (!driver_absent().empty()) {
        return driver_absent();
    }
    try {
        const CurrentContext context(current_device());
        step_function(context.handle());
        return "";
    } catch (const std::exception &error) {
        return error.what();
    }
}

void launch_step(const StepArguments &arguments, void *stream) {
    const CurrentContext context(current_device());
    LaunchConfig config{};
    config.grid[0] = static_cast<std::uint32_t>(step_blocks_for(arguments.tokens));
    config.grid[1] = config.grid[2] = config.block[1] = config.block[2] = 1;
    config.block[0] = step_threads;
    config.stream = stream;
    StepArguments copy = arguments;
    void *parameters[] = {&copy};
    check(driver().launch(&config, step_function(context.handle()),
                          static_cast<void **>(parameters), nullptr),
          "cuLaunchKernelEx");
}

#else

bool step_present() {
    return false;
}

std::string step_absent() {
    return "this build has no CUDA kernel (nvcc was not found when it was compiled)";
}

void launch_step(const StepArguments &, void *) {
    throw UserError("BvhRoute.enqueue", "a CUDA kernel", step_absent());
}

#endif

} // namespace spectral::cuda
