// Finds libnvoptix and asks for its function table, newest accepted ABI first.
#include "optix_api.h"

#include <array>
#include <cstdlib>
#include <dlfcn.h>

#include "driver_api.h"
#include "spectral/error.h"

namespace spectral::optix {
namespace {

using Table = std::array<void *, 64>; ///< larger than any accepted version

/// Drivers of CUDA 12.7 (565 to 569) miscompile ray programs, says drjit-core, which refuses them,
/// too.
inline constexpr int broken_driver = 12'070;

struct Loaded {
    OptixApi api;
    std::string reason;
};

template <class Function> void take(Function *&target, const Table &table, unsigned slot) {
    target = reinterpret_cast<Function *>(table[slot]);
}

void fill(OptixApi &api, const abi::Version &version, const Table &table) {
    api.version = version;
    take(api.error_name, table, abi::slot_error_name);
    take(api.context_create, table, abi::slot_context_create);
    take(api.context_property, table, abi::slot_context_property);
    take(api.cache_enabled, table, abi::slot_cache_enabled);
    take(api.module_create, table, abi::slot_module_create);
    take(api.group_create, table, abi::slot_group_create);
    take(api.pipeline_create, table, abi::slot_pipeline_create);
    take(api.build_sizes, table, abi::slot_build_sizes);
    take(api.build, table, abi::slot_build);
    take(api.compact, table, abi::slot_compact);
    take(api.pack_header, table, version.pack_header);
    take(api.launch, table, version.launch);
}

bool ask(abi::QueryTable *query, OptixApi &api, std::string &reason) {
    for (const abi::Version &version : abi::versions) {
        Table table{};
        if (query(version.id, 0, nullptr, nullptr, table.data(), version.slots * sizeof(void *)) ==
            0) {
            fill(api, version, table);
            return true;
        }
    }
    reason = "the driver's OptiX accepts none of the ABI versions 105, 93, 87 and 84";
    return false;
}

void open(Loaded &out) {
    const char *wanted = std::getenv("SPECTRAL_LIBNVOPTIX");
    const char *path = wanted != nullptr && *wanted != '\0' ? wanted : "libnvoptix.so.1";
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char *why = dlerror();
        out.reason = std::string("no OptiX in the NVIDIA driver: ") +
                     (why != nullptr ? why : path) +
                     "; in a container ask for the driver's graphics capability";
        return;
    }
    auto *query = reinterpret_cast<abi::QueryTable *>(dlsym(library, "optixQueryFunctionTable"));
    if (query == nullptr) {
        out.reason = std::string("no OptiX in the NVIDIA driver: ") + path +
                     " has no optixQueryFunctionTable";
        return;
    }
    int driver_version = 0;
    if (cuda::driver().driver_version(&driver_version) == 0 &&
        driver_version / 10 * 10 == broken_driver) {
        out.reason = "drivers of CUDA 12.7 compile ray programs wrongly";
        return;
    }
    ask(query, out.api, out.reason);
}

const Loaded &loaded() {
    static const Loaded once = [] {
        Loaded out;
        out.reason = cuda::driver_absent();
        if (out.reason.empty()) {
            open(out);
        }
        return out;
    }();
    return once;
}

} // namespace

const std::string &optix_absent() {
    return loaded().reason;
}

const OptixApi &optix() {
    if (!loaded().reason.empty()) {
        throw UserError("optix", "an NVIDIA driver with OptiX", loaded().reason);
    }
    return loaded().api;
}

void check_optix(abi::Result result, const char *call, const std::string &log) {
    if (result == 0) {
        return;
    }
    const OptixApi &api = loaded().api;
    const char *name = api.error_name != nullptr ? api.error_name(result) : nullptr;
    throw UserError(call, "success",
                    (name != nullptr ? std::string(name) : "error " + std::to_string(result)) +
                        (log.empty() ? "" : ": " + log));
}

} // namespace spectral::optix
