// OptiX in one CUDA context: the device context, the one pipeline, the projection kernel, and their
// launches.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "driver_api.h"
#include "kernels/project.h"
#include "kernels/scan.h"
#include "optix_api.h"
#include "programs/params.h"

namespace spectral::optix {

/// Why this build or this machine has no OptiX back-end, or empty.
std::string rays_absent();

/// One per CUDA context, made on first use and never destroyed: the driver may be gone at exit.
///
/// OptiX does not allow concurrent launches of one pipeline, so launches on different streams wait
/// for one another; that also makes one block of launch parameters enough.
class RayDevice {
  public:
    /// Of the current context. Compiles the programs on the first call (tens of milliseconds to
    /// seconds).
    static RayDevice &of(cuda::Context context);

    /// Enqueues projection, rays and the scan of what they leave on the caller's stream; scratch
    /// belongs to the device and grows.
    void launch(ProjectArguments project, SearchParams params, cuda::Stream stream);

    [[nodiscard]] abi::Context context() const { return context_; }
    /// 0 where rays are traversed by the ordinary processors; 10 and more with ray-tracing cores.
    [[nodiscard]] int rtcore_version() const { return rtcore_version_; }

    RayDevice(const RayDevice &) = delete;
    RayDevice &operator=(const RayDevice &) = delete;

  private:
    explicit RayDevice(cuda::Context context);
    void make_pipeline();
    void make_table(const abi::ProgramGroup *groups);
    void wait_for_previous(cuda::Stream stream);
    void reserve(ProjectArguments &project, SearchParams &params);

    abi::Context context_ = nullptr;
    abi::Pipeline pipeline_ = nullptr;
    abi::BindingTable table_{};
    int rtcore_version_ = 0;
    cuda::Function project_ = nullptr, scan_ = nullptr;
    cuda::DeviceBuffer records_, params_, points_, work_;
    cuda::Event done_ = nullptr;
    cuda::Stream last_stream_ = nullptr;
    bool launched_ = false;
    std::mutex mutex_;
};

/// Whether the stream is being captured into a graph. A captured optixLaunch succeeds and then does
/// nothing when the graph is replayed (measured on an H100, driver 580), so nothing here may be
/// captured.
bool is_capturing(cuda::Stream stream);

} // namespace spectral::optix
