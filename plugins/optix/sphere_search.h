// The spheres of one layer on the device and the search for candidates among them.
#pragma once

#include <cstdint>
#include <vector>

#include "driver_api.h"
#include "kernels/params.h"
#include "ray_device.h"
#include "spectral/geometry.h"
#include "structure.h"

namespace spectral::optix {

/// One batch on the device; `stream` is the caller's and must not be capturing.
struct SearchCall {
    cuda::Address x = 0; ///< [T, D]
    std::int64_t stride = 0;
    std::int32_t tokens = 0;
    std::int32_t x_dtype = cuda::dtype_bf16;
    void *ids = nullptr;          ///< [T, C] int32, or int64 if `wide_ids`
    float *scores = nullptr;      ///< [T, C] choice scores, or null
    float *weights = nullptr;     ///< [T, C] softmax over the scores, or null
    std::int32_t *work = nullptr; ///< [T, 2], see programs/params.h; or null
    std::int32_t count = 0;       ///< C, 1 to 32 and at most E
    std::int32_t spread = 0;      ///< threads a token, 1 to 32; 0: chosen
    bool wide_ids = false;
    cuda::Stream stream = nullptr;
};

/// Sizes of what was built.
struct SearchFacts {
    int abi = 0, rtcore_version = 0;
    std::size_t shells = 0, structure_bytes = 0, uncompacted_bytes = 0;
};

class SphereSearch {
  public:
    /// Builds the structures and waits for them. `rule` is read for its score only. Throws
    /// UserError for sizes beyond the programs.
    SphereSearch(cuda::Device device, const Geometry &geometry, const cuda::Rule &rule);

    /// Candidates by descending choice score, ties by smaller id, NaN last. Three launches, no
    /// synchronisation; allocates only when a batch is larger than all before. Throws UserError on
    /// a capturing stream.
    void run(const SearchCall &call) const;

    [[nodiscard]] SearchFacts facts() const;

  private:
    void upload_projection(const Geometry &geometry);

    cuda::Device device_;
    std::size_t hidden_;
    RayDevice *rays_ = nullptr;
    SearchParams params_{};
    std::vector<Structure> structures_;
    cuda::DeviceBuffer projection_, offset_, rows_, reach_;
};

} // namespace spectral::optix
