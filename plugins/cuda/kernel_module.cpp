// Loads the embedded fatbins once per context and launches from them.
#include "kernel_module.h"

#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "kernels/params.h"
#include "spectral/error.h"

#if defined(SPECTRAL_CUDA_KERNELS)
extern const unsigned char spectral_gate_fatbin[];
extern const unsigned char spectral_route_fatbin[];
#endif

namespace spectral::cuda {
namespace {

/// What a block may use on every supported GPU is less; the driver refuses more than it has.
inline constexpr int shared_limit_hopper = 227 * 1024;
inline constexpr int shared_limit_ampere = 99 * 1024;

const void *image_of(const std::string &kernel) {
#if defined(SPECTRAL_CUDA_KERNELS)
    return kernel.starts_with("spectral_gate") ? spectral_gate_fatbin : spectral_route_fatbin;
#else
    (void)kernel;
    return nullptr;
#endif
}

int shared_limit(int capability) {
    const bool large = capability == 80 || capability == 90 || capability / 10 == 10;
    return !large ? shared_limit_ampere : capability == 80 ? 163 * 1024 : shared_limit_hopper;
}

Function load(const std::string &name, Context context,
              std::map<std::pair<Context, const void *>, Module> &modules) {
    const DriverApi &api = driver();
    const void *image = image_of(name);
    Module &module = modules[{context, image}];
    if (module == nullptr) {
        check(api.module_load(&module, image), "cuModuleLoadData");
    }
    Function function = nullptr;
    check(api.module_function(&function, module, name.c_str()), "cuModuleGetFunction");
    Device device = 0;
    check(api.context_device(&device), "cuCtxGetDevice");
    const int capability = facts_of(device).capability;
    // 18 KiB stay for the static part of the kernels.
    check(api.function_attribute(function, function_max_dynamic_shared,
                                 shared_limit(capability) - 18 * 1024 - 1024),
          "cuFuncSetAttribute");
    if (capability >= 90) {
        check(api.function_attribute(function, function_non_portable_cluster, 1),
              "cuFuncSetAttribute");
    }
    return function;
}

} // namespace

std::string cuda_absent() {
#if defined(SPECTRAL_CUDA_KERNELS)
    return driver_absent();
#else
    return "this build has no CUDA kernels (nvcc was not found when it was compiled)";
#endif
}

Function kernel_named(const std::string &name, Context context) {
    static std::mutex mutex;
    static std::map<std::pair<Context, const void *>, Module> modules;
    static std::map<std::pair<Context, std::string>, Function> functions;
    const std::scoped_lock lock(mutex);
    Function &function = functions[{context, name}];
    if (function == nullptr) {
        function = load(name, context, modules);
    }
    return function;
}

bool may_overlap(const DeviceFacts &facts) {
    static const int version = [] {
        int found = 0;
        check(driver().driver_version(&found), "cuDriverGetVersion");
        return found;
    }();
    return facts.capability >= 90 && version >= 12'040;
}

void launch(Function function, const Launch &how, void *arguments) {
    std::array<LaunchAttribute, 2> attributes{};
    std::uint32_t count = 0;
    if (how.cluster > 1) {
        LaunchAttribute &cluster = attributes[count++];
        cluster.id = attribute_cluster_dimension;
        cluster.cluster[0] = how.cluster;
        cluster.cluster[1] = cluster.cluster[2] = 1;
    }
    if (how.overlaps) {
        LaunchAttribute &overlap = attributes[count++];
        overlap.id = attribute_programmatic_serialization;
        overlap.flag = 1;
    }
    LaunchConfig config{};
    config.grid[0] = how.cluster;
    config.grid[1] = how.tiles;
    config.grid[2] = 1;
    config.block[0] = warps * 32;
    config.block[1] = config.block[2] = 1;
    config.shared_bytes = how.shared_bytes;
    config.stream = how.stream;
    config.attributes = attributes.data();
    config.attribute_count = count;
    void *parameters[] = {arguments};
    check(driver().launch(&config, function, parameters, nullptr), "cuLaunchKernelEx");
}

} // namespace spectral::cuda
