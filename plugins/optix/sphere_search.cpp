// Uploads the spheres of a layer and fills the launch parameters of its batches.
#include "sphere_search.h"

#include <algorithm>
#include <string>

#include "ray_layout.h"
#include "spectral/error.h"

namespace spectral::optix {
namespace {

template <class T> cuda::DeviceBuffer upload(const std::vector<T> &values) {
    return cuda::DeviceBuffer(values.data(), values.size() * sizeof(T));
}

void check_sizes(const Geometry &g) {
    // 2^29 primitives are OptiX's limit for one structure.
    if (g.levels < 1 || g.levels > 4 || g.colours > 32 || g.hidden > (1U << 24) ||
        g.experts > (1U << 28)) {
        throw UserError("geometry", "1 to 4 levels, at most 32 colours and 2^28 experts",
                        std::to_string(g.levels) + ", " + std::to_string(g.colours) + " and " +
                            std::to_string(g.experts),
                        "use the cpu back-end for this layer");
    }
}

} // namespace

SphereSearch::SphereSearch(cuda::Device device, const Geometry &geometry, const cuda::Rule &rule)
    : device_(device), hidden_(geometry.hidden) {
    check_sizes(geometry);
    const cuda::CurrentContext context(device);
    rays_ = &RayDevice::of(context.handle());
    upload_projection(geometry);
    const HostSpheres spheres = make_spheres(geometry);
    rows_ = upload(spheres.rows);
    reach_ = upload(spheres.reach);
    params_.rows = rows_.as<Quad>();
    params_.reach = reach_.as<float>();
    params_.scale = spheres.scale;
    params_.bias_max = spheres.bias_max;
    params_.quads = spheres.quads;
    params_.experts = static_cast<std::int32_t>(geometry.experts);
    params_.rank = static_cast<std::int32_t>(geometry.rank());
    params_.score = rule.score;
    params_.biased = geometry.choice_bias != nullptr ? 1 : 0;
    for (const HostShell &shell : spheres.shells) {
        structures_.emplace_back(rays_->context(), shell);
        params_.shells[params_.shell_count++] = structures_.back().shell();
    }
}

void SphereSearch::upload_projection(const Geometry &g) {
    projection_ = cuda::DeviceBuffer(g.projection, g.rank() * g.hidden * sizeof(float));
    std::vector<float> offset(g.rank());
    for (std::size_t r = 0; r < g.rank(); ++r) {
        double sum = 0.0;
        for (std::size_t d = 0; d < g.hidden; ++d) {
            sum += static_cast<double>(g.projection[r * g.hidden + d]) *
                   static_cast<double>(g.mean[d]);
        }
        offset[r] = static_cast<float>(sum);
    }
    offset_ = upload(offset);
}

void SphereSearch::run(const SearchCall &call) const {
    if (call.count < 1 || call.count > max_list || call.count > params_.experts) {
        throw UserError("candidates", "1 to 32 and at most E", std::to_string(call.count));
    }
    if (call.tokens == 0) {
        return;
    }
    const cuda::CurrentContext context(device_);
    if (is_capturing(call.stream)) {
        throw UserError("optix", "a stream that is not being captured", "a capture",
                        "use the cuda back-end inside CUDA graphs");
    }
    const ProjectArguments project{reinterpret_cast<const void *>(call.x),
                                   projection_.as<float>(),
                                   offset_.as<float>(),
                                   nullptr,
                                   call.stride,
                                   call.tokens,
                                   static_cast<std::int32_t>(hidden_),
                                   params_.rank,
                                   call.x_dtype};
    SearchParams params = params_;
    params.ids = call.ids;
    params.scores = call.scores;
    params.weights = call.weights;
    params.work = call.work;
    params.tokens = call.tokens;
    params.count = call.count;
    params.wide_ids = call.wide_ids ? 1 : 0;
    params.spread = call.spread;
    if (params.spread < 1 || params.spread > 32) {
        params.spread = rays_->rtcore_version() == 0 ? spread_for(call.tokens) : 1;
    }
    rays_->launch(project, params, call.stream);
}

SearchFacts SphereSearch::facts() const {
    SearchFacts facts;
    facts.abi = optix().version.id;
    facts.rtcore_version = rays_->rtcore_version();
    facts.shells = structures_.size();
    for (const Structure &structure : structures_) {
        facts.structure_bytes += structure.bytes();
        facts.uncompacted_bytes += structure.uncompacted_bytes();
    }
    return facts;
}

} // namespace spectral::optix
