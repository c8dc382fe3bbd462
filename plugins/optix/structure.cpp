// Builds an acceleration structure over the boxes of a shell and keeps its compacted copy.
#include "structure.h"

#include "optix_api.h"

namespace spectral::optix {
namespace {

/// The legacy default stream: the build is ordered with everything that waits for it.
constexpr cuda::Stream build_stream = nullptr;

void finish_builds() {
    cuda::check(cuda::driver().stream_synchronize(build_stream), "cuStreamSynchronize");
}

} // namespace

Structure::Structure(abi::Context context, const HostShell &shell)
    : constant_(shell.constant), count_(static_cast<std::int32_t>(shell.ids.size())),
      ids_(shell.ids.data(), shell.ids.size() * sizeof(std::int32_t)) {
    const OptixApi &api = optix();
    const cuda::DeviceBuffer boxes(shell.boxes.data(), shell.boxes.size() * sizeof(Box));
    const abi::Address box_address = boxes.address();
    const unsigned flags = 0;
    abi::BuildInput input{};
    input.type = abi::boxes_input;
    input.boxes.boxes = &box_address;
    input.boxes.count = static_cast<unsigned>(count_);
    input.boxes.flags = &flags;
    input.boxes.records = 1;
    abi::BuildOptions options{};
    options.flags = abi::prefer_fast_trace | abi::allow_compaction;
    options.operation = abi::operation_build;
    abi::BuildSizes sizes{};
    check_optix(api.build_sizes(context, &options, &input, 1, &sizes),
                "optixAccelComputeMemoryUsage");
    const cuda::DeviceBuffer scratch(sizes.scratch);
    cuda::DeviceBuffer whole(sizes.output);
    const cuda::DeviceBuffer compacted_size(sizeof(std::uint64_t));
    const abi::EmitProperty emit{compacted_size.address(), abi::emit_compacted_size};
    check_optix(api.build(context, build_stream, &options, &input, 1, scratch.address(),
                          sizes.scratch, whole.address(), sizes.output, &handle_, &emit, 1),
                "optixAccelBuild");
    finish_builds();
    uncompacted_ = sizes.output;
    std::uint64_t smaller = 0;
    cuda::check(cuda::driver().to_host(&smaller, compacted_size.address(), sizeof(smaller)),
                "cuMemcpyDtoH");
    if (smaller == 0 || smaller >= sizes.output) {
        memory_ = std::move(whole);
        return;
    }
    memory_ = cuda::DeviceBuffer(smaller);
    check_optix(api.compact(context, build_stream, handle_, memory_.address(), smaller, &handle_),
                "optixAccelCompact");
    finish_builds(); // before `whole` is released
}

Shell Structure::shell() const {
    return {handle_, ids_.as<std::int32_t>(), constant_, count_};
}

} // namespace spectral::optix
