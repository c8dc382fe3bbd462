// The kernel's module, loaded once per context through the driver table of plugins/cuda.
#include "device_step.h"

#include <algorithm>

#include "spectral/error.h"

#if defined(SPECTRAL_STEP_KERNEL)
#include <map>
#include <mutex>

#include "driver_api.h"

extern const unsigned char spectral_step_fatbin[];
#endif

namespace spectral::trt {

int step_blocks_for(std::int64_t tokens) {
    return static_cast<int>(std::clamp<std::int64_t>(tokens, 1, step_blocks));
}

std::size_t step_workspace(const RouteSpec &spec, std::int64_t tokens) {
    return static_cast<std::size_t>(step_blocks_for(tokens)) * 3 *
           static_cast<std::size_t>(spec.rule.experts) * sizeof(float);
}

#if defined(SPECTRAL_STEP_KERNEL)

namespace {

cuda::Function step_function(cuda::Context context) {
    static std::mutex mutex;
    static std::map<cuda::Context, cuda::Function> functions;
    const std::scoped_lock lock(mutex);
    cuda::Function &function = functions[context];
    if (function == nullptr) {
        cuda::Module module = nullptr;
        cuda::check(cuda::driver().module_load(&module, spectral_step_fatbin), "cuModuleLoadData");
        cuda::check(cuda::driver().module_function(&function, module, "spectral_route_step"),
                    "cuModuleGetFunction");
    }
    return function;
}

} // namespace

std::string step_absent() {
    if (!cuda::driver_absent().empty()) {
        return cuda::driver_absent();
    }
    try {
        cuda::Device device = 0;
        cuda::Context current = nullptr;
        cuda::check(cuda::driver().context_get(&current), "cuCtxGetCurrent");
        if (current != nullptr) {
            cuda::check(cuda::driver().context_device(&device), "cuCtxGetDevice");
        }
        const cuda::CurrentContext context(device);
        step_function(context.handle());
        return "";
    } catch (const std::exception &error) {
        return error.what();
    }
}

void launch_step(const StepArguments &arguments, void *stream) {
    cuda::Device device = 0;
    cuda::Context current = nullptr;
    cuda::check(cuda::driver().context_get(&current), "cuCtxGetCurrent");
    if (current != nullptr) {
        cuda::check(cuda::driver().context_device(&device), "cuCtxGetDevice");
    }
    const cuda::CurrentContext context(device);
    cuda::LaunchConfig config{};
    config.grid[0] = static_cast<std::uint32_t>(step_blocks_for(arguments.tokens));
    config.grid[1] = config.grid[2] = config.block[1] = config.block[2] = 1;
    config.block[0] = step_threads;
    config.stream = stream;
    StepArguments copy = arguments;
    void *parameters[] = {&copy};
    cuda::check(cuda::driver().launch(&config, step_function(context.handle()),
                                      static_cast<void **>(parameters), nullptr),
                "cuLaunchKernelEx");
}

#else

std::string step_absent() {
    return "this build has no CUDA kernel (nvcc was not found when it was compiled)";
}

void launch_step(const StepArguments &, void *) {
    throw UserError("BvhRoute.enqueue", "a CUDA kernel", step_absent());
}

#endif

} // namespace spectral::trt
