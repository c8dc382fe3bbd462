// libcuda at run time: one table of entry points, found once, with the reason when it is absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace spectral::cuda {

using Result = int;
using Device = int;
using Address = std::uint64_t; ///< CUdeviceptr
using Context = void *;        ///< CUcontext
using Module = void *;         ///< CUmodule
using Function = void *;       ///< CUfunction
using Stream = void *;         ///< CUstream, the caller's
using Event = void *;          ///< CUevent

/// CUlaunchAttribute: 64 bytes of value behind an identifier.
struct LaunchAttribute {
    std::int32_t id;
    std::int32_t padding;
    union {
        std::uint32_t cluster[3];
        std::int32_t flag;
        char bytes[64];
    };
};

/// CUlaunchConfig.
struct LaunchConfig {
    std::uint32_t grid[3];
    std::uint32_t block[3];
    std::uint32_t shared_bytes;
    Stream stream;
    LaunchAttribute *attributes;
    std::uint32_t attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "layout of cuda.h");

inline constexpr std::int32_t attribute_cluster_dimension = 4;
inline constexpr std::int32_t attribute_programmatic_serialization = 6;
inline constexpr int function_max_dynamic_shared = 8;
inline constexpr int function_non_portable_cluster = 14;

/// One LOAD list: member, symbol of libcuda, signature. `_v2` symbols are the current ABI.
#define SPECTRAL_DRIVER_API(LOAD)                                                                  \
    LOAD(init, "cuInit", Result(unsigned))                                                         \
    LOAD(driver_version, "cuDriverGetVersion", Result(int *))                                      \
    LOAD(device_count, "cuDeviceGetCount", Result(int *))                                          \
    LOAD(device_name, "cuDeviceGetName", Result(char *, int, Device))                              \
    LOAD(device_attribute, "cuDeviceGetAttribute", Result(int *, int, Device))                     \
    LOAD(primary_retain, "cuDevicePrimaryCtxRetain", Result(Context *, Device))                    \
    LOAD(context_get, "cuCtxGetCurrent", Result(Context *))                                        \
    LOAD(context_device, "cuCtxGetDevice", Result(Device *))                                       \
    LOAD(context_push, "cuCtxPushCurrent_v2", Result(Context))                                     \
    LOAD(context_pop, "cuCtxPopCurrent_v2", Result(Context *))                                     \
    LOAD(context_synchronize, "cuCtxSynchronize", Result())                                        \
    LOAD(module_load, "cuModuleLoadData", Result(Module *, const void *))                          \
    LOAD(module_function, "cuModuleGetFunction", Result(Function *, Module, const char *))         \
    LOAD(function_attribute, "cuFuncSetAttribute", Result(Function, int, int))                     \
    LOAD(launch, "cuLaunchKernelEx", Result(const LaunchConfig *, Function, void **, void **))     \
    LOAD(allocate, "cuMemAlloc_v2", Result(Address *, std::size_t))                                \
    LOAD(release, "cuMemFree_v2", Result(Address))                                                 \
    LOAD(to_device, "cuMemcpyHtoD_v2", Result(Address, const void *, std::size_t))                 \
    LOAD(to_host, "cuMemcpyDtoH_v2", Result(void *, Address, std::size_t))                         \
    LOAD(to_device_async, "cuMemcpyHtoDAsync_v2",                                                  \
         Result(Address, const void *, std::size_t, Stream))                                       \
    LOAD(stream_synchronize, "cuStreamSynchronize", Result(Stream))                                \
    LOAD(stream_capturing, "cuStreamIsCapturing", Result(Stream, int *))                           \
    LOAD(stream_wait, "cuStreamWaitEvent", Result(Stream, Event, unsigned))                        \
    LOAD(event_create, "cuEventCreate", Result(Event *, unsigned))                                 \
    LOAD(event_record, "cuEventRecord", Result(Event, Stream))                                     \
    LOAD(error_name, "cuGetErrorName", Result(Result, const char **))                              \
    LOAD(error_string, "cuGetErrorString", Result(Result, const char **))

/// The table; every member is set once `driver()` has returned it.
struct DriverApi {
    template <class Signature> using Pointer = Signature *;
#define SPECTRAL_DECLARE(member, symbol, ...) Pointer<__VA_ARGS__> member = nullptr;
    SPECTRAL_DRIVER_API(SPECTRAL_DECLARE)
#undef SPECTRAL_DECLARE
};

/// Why no CUDA device can be used here, or empty. Opens libcuda (SPECTRAL_LIBCUDA overrides the
/// path) and calls cuInit on the first call; the answer is remembered.
const std::string &driver_absent();

/// The table. Throws UserError with the reason of driver_absent().
const DriverApi &driver();

/// Throws UserError naming the call when a driver call failed.
void check(Result result, const char *call);

/// Compute capability as major * 10 + minor, and the number of multiprocessors.
struct DeviceFacts {
    int capability = 0;
    int multiprocessors = 0;
    std::string name;
};
const DeviceFacts &facts_of(Device device);

/// Makes a context of `device` current while it lives: the caller's when there is one on that
/// device, else the primary one. Never creates a context of its own.
class CurrentContext {
  public:
    explicit CurrentContext(Device device);
    ~CurrentContext();
    CurrentContext(const CurrentContext &) = delete;
    CurrentContext &operator=(const CurrentContext &) = delete;
    [[nodiscard]] Context handle() const { return context_; }

  private:
    Context context_ = nullptr;
    bool pushed_ = false;
};

/// Device memory that lives with its owner; never freed at process exit, when the driver is gone.
class DeviceBuffer {
  public:
    DeviceBuffer() = default;
    explicit DeviceBuffer(std::size_t bytes);
    DeviceBuffer(const void *source, std::size_t bytes);
    ~DeviceBuffer();
    DeviceBuffer(DeviceBuffer &&other) noexcept;
    DeviceBuffer &operator=(DeviceBuffer &&other) noexcept;
    [[nodiscard]] Address address() const { return address_; }
    [[nodiscard]] std::size_t bytes() const { return bytes_; }
    /// Grows to at least `bytes`; the old content is lost.
    void reserve(std::size_t bytes);
    template <class T> [[nodiscard]] const T *as() const {
        return reinterpret_cast<const T *>(address_);
    }

  private:
    Address address_ = 0;
    std::size_t bytes_ = 0;
};

} // namespace spectral::cuda
