// Finds libcuda, fills the table, and wraps contexts and device memory.
#include "driver_api.h"

#include <array>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <utility>

#include "spectral/error.h"

namespace spectral::cuda {
namespace {

inline constexpr int attribute_multiprocessors = 16;
inline constexpr int attribute_major = 75;
inline constexpr int attribute_minor = 76;
/// bf16 matrix instructions and asynchronous copies begin with Ampere.
inline constexpr int oldest_capability = 80;

struct Loaded {
    DriverApi api;
    std::string reason;
};

std::string text_of(const DriverApi &api, Result result) {
    const char *name = nullptr;
    const char *text = nullptr;
    if (api.error_name != nullptr && api.error_name(result, &name) == 0 && name != nullptr) {
        if (api.error_string != nullptr) {
            api.error_string(result, &text);
        }
        return std::string(name) + (text != nullptr ? std::string(" (") + text + ")" : "");
    }
    return "error " + std::to_string(result);
}

void *open_library(std::string &reason) {
    const char *wanted = std::getenv("SPECTRAL_LIBCUDA");
    const char *path = wanted != nullptr && *wanted != '\0' ? wanted : "libcuda.so.1";
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char *why = dlerror();
        reason = std::string("no NVIDIA driver: ") + (why != nullptr ? why : path);
    }
    return library;
}

bool find_symbols(void *library, DriverApi &api, std::string &reason) {
    // The first missing symbol is named: it tells which driver version is too old.
#define SPECTRAL_LOAD(member, symbol, ...)                                                         \
    api.member = reinterpret_cast<DriverApi::Pointer<__VA_ARGS__>>(dlsym(library, symbol));        \
    if (api.member == nullptr) {                                                                   \
        reason = "the NVIDIA driver is too old: libcuda has no " symbol;                           \
        return false;                                                                              \
    }
    SPECTRAL_DRIVER_API(SPECTRAL_LOAD)
#undef SPECTRAL_LOAD
    return true;
}

std::string first_device_reason(const DriverApi &api) {
    if (const Result result = api.init(0); result != 0) {
        return "the NVIDIA driver does not start: cuInit says " + text_of(api, result);
    }
    int count = 0;
    if (api.device_count(&count) != 0 || count == 0) {
        return "the NVIDIA driver sees no GPU";
    }
    int major = 0;
    int minor = 0;
    api.device_attribute(&major, attribute_major, 0);
    api.device_attribute(&minor, attribute_minor, 0);
    if (10 * major + minor < oldest_capability) {
        return "the GPU has compute capability " + std::to_string(major) + "." +
               std::to_string(minor) + ", the kernels need 8.0";
    }
    return "";
}

const Loaded &loaded() {
    static const Loaded once = [] {
        Loaded out;
        void *library = open_library(out.reason);
        if (library != nullptr && find_symbols(library, out.api, out.reason)) {
            out.reason = first_device_reason(out.api);
        }
        return out;
    }();
    return once;
}

} // namespace

const std::string &driver_absent() {
    return loaded().reason;
}

const DriverApi &driver() {
    if (!loaded().reason.empty()) {
        throw UserError("cuda", "an NVIDIA GPU and its driver", loaded().reason);
    }
    return loaded().api;
}

void check(Result result, const char *call) {
    if (result != 0) {
        throw UserError(call, "success", text_of(loaded().api, result));
    }
}

const DeviceFacts &facts_of(Device device) {
    static std::mutex mutex;
    static std::map<Device, DeviceFacts> known;
    const std::scoped_lock lock(mutex);
    auto [entry, added] = known.try_emplace(device);
    if (added) {
        const DriverApi &api = driver();
        int major = 0;
        int minor = 0;
        std::array<char, 128> name{};
        check(api.device_attribute(&major, attribute_major, device), "cuDeviceGetAttribute");
        check(api.device_attribute(&minor, attribute_minor, device), "cuDeviceGetAttribute");
        check(
            api.device_attribute(&entry->second.multiprocessors, attribute_multiprocessors, device),
            "cuDeviceGetAttribute");
        check(api.device_name(name.data(), static_cast<int>(name.size()) - 1, device),
              "cuDeviceGetName");
        entry->second.capability = 10 * major + minor;
        entry->second.name = name.data();
    }
    return entry->second;
}

CurrentContext::CurrentContext(Device device) {
    const DriverApi &api = driver();
    Device current = -1;
    check(api.context_get(&context_), "cuCtxGetCurrent");
    if (context_ != nullptr) {
        check(api.context_device(&current), "cuCtxGetDevice");
    }
    if (current != device) {
        static std::mutex mutex;
        static std::map<Device, Context> primaries;
        const std::scoped_lock lock(mutex);
        Context &primary = primaries[device];
        if (primary == nullptr) {
            check(api.primary_retain(&primary, device), "cuDevicePrimaryCtxRetain");
        }
        context_ = primary;
        check(api.context_push(context_), "cuCtxPushCurrent");
        pushed_ = true;
    }
}

CurrentContext::~CurrentContext() {
    if (pushed_) {
        Context popped = nullptr;
        driver().context_pop(&popped);
    }
}

DeviceBuffer::DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    if (bytes > 0) {
        check(driver().allocate(&address_, bytes), "cuMemAlloc");
    }
}

DeviceBuffer::DeviceBuffer(const void *source, std::size_t bytes) : DeviceBuffer(bytes) {
    if (bytes > 0) {
        check(driver().to_device(address_, source, bytes), "cuMemcpyHtoD");
    }
}

DeviceBuffer::~DeviceBuffer() {
    if (address_ != 0) {
        driver().release(address_); // fails quietly when the driver is already shut down
    }
}

DeviceBuffer::DeviceBuffer(DeviceBuffer &&other) noexcept
    : address_(std::exchange(other.address_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer &DeviceBuffer::operator=(DeviceBuffer &&other) noexcept {
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

void DeviceBuffer::reserve(std::size_t bytes) {
    if (bytes > bytes_) {
        *this = DeviceBuffer(bytes);
    }
}

} // namespace spectral::cuda
