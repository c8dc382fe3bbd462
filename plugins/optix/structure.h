// One acceleration structure over boxes, compacted; lives as long as its owner.
#pragma once

#include <vector>

#include "driver_api.h"
#include "ray_device.h"
#include "sphere_shells.h"

namespace spectral::optix {

/// What a traversal of one shell needs on the device.
class Structure {
  public:
    /// Builds and compacts; waits for the GPU. Throws UserError when the driver refuses.
    Structure(abi::Context context, const HostShell &shell);

    [[nodiscard]] Shell shell() const;
    [[nodiscard]] std::size_t bytes() const { return memory_.bytes(); }
    [[nodiscard]] std::size_t uncompacted_bytes() const { return uncompacted_; }

  private:
    float constant_;
    std::int32_t count_;
    std::size_t uncompacted_ = 0;
    abi::Traversable handle_ = 0;
    cuda::DeviceBuffer memory_, ids_;
};

} // namespace spectral::optix
