// A driver without a GPU: memory is the host's, and a launch of the step kernel is written down.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels/step_arguments.h"

namespace {

struct LaunchConfig {
    std::uint32_t grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    std::uint32_t attribute_count;
};

/// What tests read: launches, allocations, then stream, blocks, tokens, hidden, gate rows, ids,
/// weights, workspace and the two types of the last launch.
std::int64_t written[12];
int context;

std::int64_t place(const void *pointer) {
    return reinterpret_cast<std::int64_t>(pointer);
}

} // namespace

#define FAKE(name, ...) extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__)

extern "C" __attribute__((visibility("default"))) std::int64_t *fake_written() {
    return written;
}

FAKE(cuInit, unsigned) {
    return 0;
}
FAKE(cuDriverGetVersion, int *version) {
    return *version = 13000, 0;
}
FAKE(cuDeviceGetCount, int *count) {
    return *count = 1, 0;
}
FAKE(cuDeviceGetName, char *name, int size, int) {
    return std::strncpy(name, "fake", size), 0;
}
FAKE(cuDeviceGetAttribute, int *value, int attribute, int) {
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1, 0;
}
FAKE(cuDevicePrimaryCtxRetain, void **out, int) {
    return *out = &context, 0;
}
FAKE(cuCtxGetCurrent, void **out) {
    return *out = &context, 0;
}
FAKE(cuCtxGetDevice, int *device) {
    return *device = 0;
}
FAKE(cuCtxPushCurrent_v2, void *) {
    return 0;
}
FAKE(cuCtxPopCurrent_v2, void **) {
    return 0;
}
FAKE(cuCtxSynchronize) {
    return 0;
}
FAKE(cuModuleLoadData, void **module, const void *image) {
    return *module = const_cast<void *>(image), 0;
}
FAKE(cuModuleGetFunction, void **function, void *module, const char *) {
    return *function = module, 0;
}
FAKE(cuFuncSetAttribute, void *, int, int) {
    return 0;
}
FAKE(cuLaunchKernelEx, const LaunchConfig *config, void *, void **parameters, void **) {
    const auto &a = *static_cast<const spectral::cuda::StepArguments *>(parameters[0]);
    const std::int64_t now[] = {written[0] + 1,
                                written[1],
                                place(config->stream),
                                config->grid[0],
                                a.tokens,
                                place(a.hidden),
                                place(a.arrays.gate_weight),
                                place(a.ids),
                                place(a.weights),
                                place(a.workspace),
                                static_cast<int>(a.scalar),
                                static_cast<int>(a.weight_scalar)};
    return std::memcpy(written, now, sizeof(written)), 0;
}
FAKE(cuMemAlloc_v2, std::uint64_t *address, std::size_t bytes) {
    ++written[1];
    return *address = reinterpret_cast<std::uint64_t>(std::malloc(bytes)), 0;
}
FAKE(cuMemFree_v2, std::uint64_t address) {
    return std::free(reinterpret_cast<void *>(address)), 0;
}
FAKE(cuMemcpyHtoD_v2, std::uint64_t, const void *, std::size_t) {
    return 0;
}
FAKE(cuMemcpyDtoH_v2, void *, std::uint64_t, std::size_t) {
    return 0;
}
FAKE(cuMemcpyHtoDAsync_v2, std::uint64_t, const void *, std::size_t, void *) {
    return 0;
}
FAKE(cuStreamSynchronize, void *) {
    return 0;
}
FAKE(cuStreamIsCapturing, void *, int *capturing) {
    return *capturing = 0;
}
FAKE(cuStreamWaitEvent, void *, void *, unsigned) {
    return 0;
}
FAKE(cuEventCreate, void **event, unsigned) {
    return *event = &context, 0;
}
FAKE(cuEventRecord, void *, void *) {
    return 0;
}
FAKE(cuGetErrorName, int, const char **name) {
    return *name = "fake", 0;
}
FAKE(cuGetErrorString, int, const char **text) {
    return *text = "fake", 0;
}
