// Makes the pipeline of a context from the embedded programs, and launches it.
#include "ray_device.h"

#include <array>
#include <cstring>
#include <map>
#include <string_view>

#include "spectral/error.h"

#if defined(SPECTRAL_OPTIX_PROGRAMS)
extern const unsigned char spectral_rays_ptx[];
extern const std::size_t spectral_rays_ptx_size;
extern const unsigned char spectral_project_fatbin[];
extern const unsigned char spectral_scan_fatbin[];
#endif

namespace spectral::optix {
namespace {

/// Rays of one optixLaunch; the limit is about 2^30.
constexpr std::int64_t most_rays = 1LL << 28;
inline constexpr unsigned event_without_timing = 2;

#if defined(SPECTRAL_OPTIX_PROGRAMS)
std::string_view programs() {
    return {reinterpret_cast<const char *>(spectral_rays_ptx), spectral_rays_ptx_size};
}
const void *project_image() {
    return spectral_project_fatbin;
}
const void *scan_image() {
    return spectral_scan_fatbin;
}
#else
std::string_view programs() {
    return {};
}
const void *project_image() {
    return nullptr;
}
const void *scan_image() {
    return nullptr;
}
#endif

/// A buffer for what OptiX's compiler says.
struct CompilerLog {
    std::array<char, 4096> text{};
    std::size_t size = text.size();
    [[nodiscard]] std::string read() const { return text.data(); }
};

abi::PipelineOptions pipeline_options() {
    abi::PipelineOptions options{};
    options.graph_flags = abi::allow_single_structure;
    options.payload_values = 2;
    options.attribute_values = 2; // the least allowed
    options.params_name = "params";
    options.primitive_types = abi::custom_primitives;
    return options;
}

abi::GroupDescription single_group(int kind, abi::Module module, const char *entry) {
    abi::GroupDescription description{};
    description.kind = kind;
    description.single = {module, entry};
    return description;
}

cuda::Function function_of(const void *image, const char *name) {
    cuda::Module module = nullptr;
    cuda::Function function = nullptr;
    cuda::check(cuda::driver().module_load(&module, image), "cuModuleLoadData");
    cuda::check(cuda::driver().module_function(&function, module, name), "cuModuleGetFunction");
    return function;
}

/// A warp a token.
template <class Arguments>
void launch_warps(cuda::Function function, Arguments &arguments, int warps, cuda::Stream stream) {
    cuda::LaunchConfig config{};
    config.grid[0] = static_cast<std::uint32_t>((arguments.tokens + warps - 1) / warps);
    config.grid[1] = config.grid[2] = config.block[1] = config.block[2] = 1;
    config.block[0] = static_cast<std::uint32_t>(warps * 32);
    config.stream = stream;
    void *pointers[] = {&arguments};
    cuda::check(cuda::driver().launch(&config, function, static_cast<void **>(pointers), nullptr),
                "cuLaunchKernelEx");
}

} // namespace

std::string rays_absent() {
#if defined(SPECTRAL_OPTIX_PROGRAMS)
    return optix_absent();
#else
    return "this build has no ray programs (nvcc was not found when it was compiled)";
#endif
}

bool is_capturing(cuda::Stream stream) {
    int status = 0;
    cuda::check(cuda::driver().stream_capturing(stream, &status), "cuStreamIsCapturing");
    return status != 0;
}

RayDevice &RayDevice::of(cuda::Context context) {
    static std::mutex mutex;
    static std::map<cuda::Context, RayDevice *> devices;
    const std::scoped_lock lock(mutex);
    RayDevice *&device = devices[context];
    if (device == nullptr) {
        device = new RayDevice(context);
    }
    return *device;
}

RayDevice::RayDevice(cuda::Context context) {
    const OptixApi &api = optix();
    const abi::ContextOptions options{};
    check_optix(api.context_create(context, &options, &context_), "optixDeviceContextCreate");
    // Its disk cache is one file for all users of a machine, in a folder that may be read-only.
    check_optix(api.cache_enabled(context_, 0), "optixDeviceContextSetCacheEnabled");
    check_optix(api.context_property(context_, abi::property_rtcore_version, &rtcore_version_,
                                     sizeof(rtcore_version_)),
                "optixDeviceContextGetProperty");
    make_pipeline();
    project_ = function_of(project_image(), "spectral_project");
    scan_ = function_of(scan_image(), "spectral_scan_rest");
    cuda::check(cuda::driver().event_create(&done_, event_without_timing), "cuEventCreate");
    params_ = cuda::DeviceBuffer(sizeof(SearchParams));
}

void RayDevice::make_pipeline() {
    const OptixApi &api = optix();
    const abi::PipelineOptions options = pipeline_options();
    const abi::ModuleOptions module_options{};
    CompilerLog log;
    abi::Module module = nullptr;
    check_optix(api.module_create(context_, &module_options, &options, programs().data(),
                                  programs().size(), log.text.data(), &log.size, &module),
                "optixModuleCreate", log.read());
    std::array<abi::GroupDescription, 3> descriptions{
        single_group(abi::raygen_group, module, "__raygen__route"),
        single_group(abi::miss_group, module, "__miss__nothing"),
        single_group(abi::hit_group, nullptr, nullptr)};
    descriptions[2].hit = {};
    descriptions[2].hit.intersection = {module, "__intersection__sphere"};
    std::array<abi::ProgramGroup, 3> groups{};
    const abi::GroupOptions group_options{};
    log = {};
    check_optix(api.group_create(context_, descriptions.data(), 3, &group_options, log.text.data(),
                                 &log.size, groups.data()),
                "optixProgramGroupCreate", log.read());
    const abi::LinkOptions link{1};
    log = {};
    check_optix(api.pipeline_create(context_, &options, &link, groups.data(), 3, log.text.data(),
                                    &log.size, &pipeline_),
                "optixPipelineCreate", log.read());
    make_table(groups.data());
}

/// Three records that hold a header and nothing else.
void RayDevice::make_table(const abi::ProgramGroup *groups) {
    alignas(abi::record_alignment) std::array<char, 3 * abi::record_header> records{};
    for (std::size_t i = 0; i < 3; ++i) {
        check_optix(optix().pack_header(groups[i], records.data() + i * abi::record_header),
                    "optixSbtRecordPackHeader");
    }
    records_ = cuda::DeviceBuffer(records.data(), records.size());
    table_.raygen = records_.address();
    table_.miss = records_.address() + abi::record_header;
    table_.hit = records_.address() + 2 * abi::record_header;
    table_.miss_stride = table_.hit_stride = abi::record_header;
    table_.miss_count = table_.hit_count = 1;
}

void RayDevice::wait_for_previous(cuda::Stream stream) {
    if (launched_ && stream != last_stream_) {
        cuda::check(cuda::driver().stream_wait(stream, done_, 0), "cuStreamWaitEvent");
    }
}

void RayDevice::reserve(ProjectArguments &project, SearchParams &params) {
    const auto tokens = static_cast<std::size_t>(project.tokens);
    points_.reserve(tokens * static_cast<std::size_t>(project.rank) * sizeof(float));
    project.points = reinterpret_cast<float *>(points_.address());
    params.points = project.points;
    if (params.work == nullptr) {
        work_.reserve(tokens * 2 * sizeof(std::int32_t));
        params.work = reinterpret_cast<std::int32_t *>(work_.address());
    }
}

void RayDevice::launch(ProjectArguments project, SearchParams params, cuda::Stream stream) {
    if (project.tokens == 0) {
        return;
    }
    if (std::int64_t{project.tokens} * params.spread > most_rays) {
        throw UserError("tokens", "at most 2^28 rays a call", std::to_string(project.tokens));
    }
    const std::scoped_lock lock(mutex_);
    wait_for_previous(stream);
    reserve(project, params);
    launch_warps(project_, project, project_warps, stream);
    // From pageable memory: the driver has copied the block when this returns.
    cuda::check(cuda::driver().to_device_async(params_.address(), &params, sizeof(params), stream),
                "cuMemcpyHtoDAsync");
    check_optix(optix().launch(pipeline_, stream, params_.address(), sizeof(params), &table_,
                               static_cast<unsigned>(project.tokens * params.spread), 1, 1),
                "optixLaunch");
    launch_warps(scan_, params, scan_warps, stream);
    cuda::check(cuda::driver().event_record(done_, stream), "cuEventRecord");
    last_stream_ = stream;
    launched_ = true;
}

} // namespace spectral::optix
