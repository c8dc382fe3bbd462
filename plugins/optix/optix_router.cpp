// Chooses between rays and the CUDA back-end, and moves host arrays.
#include "optix_router.h"

#include <algorithm>
#include <string>

#include "../cuda/thresholds.h"
#include "spectral/error.h"

namespace spectral::optix {
namespace {

cuda::RouteCall same_call(const SearchCall &call) {
    cuda::RouteCall other{call.x, call.stride, call.tokens, call.x_dtype};
    other.output.ids = call.ids;
    other.output.scores = call.scores;
    other.output.weights = call.weights;
    other.output.weights_dtype = cuda::dtype_f32;
    other.output.wide_ids = call.wide_ids ? 1 : 0;
    other.output.count = call.count;
    other.stream = call.stream;
    return other;
}

} // namespace

OptixRouter::OptixRouter(cuda::Device device, const Geometry &geometry, const Topology *topology,
                         const cuda::Rule &rule)
    : top_k_(rule.top_k), cuda_(device, geometry, topology, rule), search_(device, geometry, rule) {
}

bool OptixRouter::candidates(const SearchCall &call) const {
    if ((call.scores == nullptr) == (call.weights == nullptr) ||
        (call.weights != nullptr && call.count != top_k_)) {
        throw UserError("candidates", "scores, or weights of as many as the rule chooses",
                        std::to_string(call.count) + " candidates");
    }
    const cuda::CurrentContext context(cuda_.device());
    if (is_capturing(call.stream)) {
        cuda_.candidates(same_call(call));
        return false;
    }
    search_.run(call);
    return true;
}

void OptixRouter::candidates_on_host(const float *hidden, std::size_t tokens,
                                     const HostCandidates &out) {
    const cuda::CurrentContext context(cuda_.device());
    const cuda::DriverApi &api = cuda::driver();
    const std::size_t width = cuda_.hidden();
    const std::size_t count = out.candidates.count;
    const std::size_t most =
        std::max<std::size_t>(1, static_cast<std::size_t>(cuda::staging_bytes) / (width * 4));
    for (std::size_t begin = 0; begin < tokens; begin += most) {
        const std::size_t batch = std::min(most, tokens - begin);
        staging_x_.reserve(batch * width * 4);
        staging_ids_.reserve(batch * count * 4);
        staging_scores_.reserve(batch * count * 4);
        staging_work_.reserve(batch * 2 * 4);
        cuda::check(api.to_device(staging_x_.address(), hidden + begin * width, batch * width * 4),
                    "cuMemcpyHtoD");
        SearchCall call{staging_x_.address(), static_cast<std::int64_t>(width),
                        static_cast<std::int32_t>(batch), cuda::dtype_f32};
        call.ids = reinterpret_cast<void *>(staging_ids_.address());
        call.scores = reinterpret_cast<float *>(staging_scores_.address());
        call.work = reinterpret_cast<std::int32_t *>(staging_work_.address());
        call.count = static_cast<std::int32_t>(count);
        search_.run(call);
        cuda::check(api.to_host(out.candidates.ids + begin * count, staging_ids_.address(),
                                batch * count * 4),
                    "cuMemcpyDtoH");
        cuda::check(api.to_host(out.candidates.scores + begin * count, staging_scores_.address(),
                                batch * count * 4),
                    "cuMemcpyDtoH");
        if (out.work != nullptr) {
            cuda::check(api.to_host(out.work + begin * 2, staging_work_.address(), batch * 2 * 4),
                        "cuMemcpyDtoH");
        }
    }
}

} // namespace spectral::optix
