// Brings a network's constants back to the host once, builds spheres of them, and asks rays for
// candidates.
#include "ray_candidates.h"

#if defined(SPECTRAL_STEP_KERNEL)
#include <cstring>
#include <vector>

#include "device_step.h"
#include "sphere_search.h"
#endif

namespace spectral::trt {

bool rays_fit(const RouteSpec &spec) {
    const GateRule &rule = spec.rule;
    const bool plain = rule.score == GateScore::softmax || rule.score == GateScore::logits;
    // As in spectral_runtime.reference.separable: otherwise an expert's rank depends on the others.
    const bool separable =
        plain ? spec.choice_bias == 0 || rule.score == GateScore::logits : spec.centred == 0;
    return spec.mode == RouteMode::prefilter && spec.candidates <= 32 && separable &&
           rule.logit_scale == 1.0F && rule.softcap == 0.0F && spec.levels >= 1 &&
           spec.levels <= 4 && spec.colours <= 32;
}

std::size_t rays_workspace(const RouteSpec &spec, std::int64_t tokens) {
    return rays_fit(spec) ? static_cast<std::size_t>(tokens) *
                                static_cast<std::size_t>(spec.candidates) * sizeof(std::int32_t)
                          : 0;
}

#if defined(SPECTRAL_STEP_KERNEL)

namespace {

std::vector<float> download(const float *source, std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    cuda::check(cuda::driver().to_host(values.data(), reinterpret_cast<cuda::Address>(source),
                                       values.size() * sizeof(float)),
                "cuMemcpyDtoH");
    return values;
}

/// The geometry of a step in host memory; candidates are ordered with the spread added.
struct HostArrays {
    std::vector<float> mean, projection, centres, colour, beta, choice_bias;
    Geometry geometry;

    explicit HostArrays(const cuda::StepArguments &a) {
        const RouteSpec &spec = a.spec;
        const std::int64_t experts = spec.rule.experts;
        mean = download(a.arrays.mean, spec.hidden);
        projection = download(a.arrays.projection, std::int64_t{spec.rows()} * spec.hidden);
        beta = download(a.arrays.beta, experts);
        const std::vector<float> spread = download(a.arrays.spread, experts);
        for (std::size_t e = 0; e < beta.size(); ++e) {
            beta[e] += spread[e];
        }
        if (spec.choice_bias != 0) {
            choice_bias = download(a.arrays.choice_bias, experts);
        }
        split(download(a.arrays.directions, experts * spec.rows()), spec);
        geometry.hidden = static_cast<std::size_t>(spec.hidden);
        geometry.experts = static_cast<std::size_t>(experts);
        geometry.levels = static_cast<std::size_t>(spec.levels);
        geometry.colours = static_cast<std::size_t>(spec.colours);
        geometry.mean = mean.data();
        geometry.projection =
            projection.data(); // the row of the common mode comes last and is left
        geometry.centres = centres.data();
        geometry.colour = colour.data();
        geometry.beta = beta.data();
        geometry.choice_bias = choice_bias.empty() ? nullptr : choice_bias.data();
    }

    /// Directions [E, rows] to centres [L, E, 3], half of them, and colours [E, S].
    void split(const std::vector<float> &directions, const RouteSpec &spec) {
        const auto experts = static_cast<std::size_t>(spec.rule.experts);
        const auto rows = static_cast<std::size_t>(spec.rows());
        const auto points = static_cast<std::size_t>(3 * spec.levels);
        const auto colours = static_cast<std::size_t>(spec.colours);
        centres.resize(experts * points);
        colour.resize(experts * colours);
        for (std::size_t e = 0; e < experts; ++e) {
            for (std::size_t r = 0; r < points; ++r) {
                centres[(r / 3 * experts + e) * 3 + r % 3] = 0.5F * directions[e * rows + r];
            }
            for (std::size_t s = 0; s < colours; ++s) {
                colour[e * colours + s] = directions[e * rows + points + s];
            }
        }
    }
};

cuda::Rule score_of(const GateRule &rule) {
    cuda::Rule numbers{};
    numbers.experts = rule.experts;
    numbers.top_k = rule.top_k;
    numbers.score = rule.score == GateScore::sigmoid        ? cuda::score_sigmoid
                    : rule.score == GateScore::sqrtsoftplus ? cuda::score_sqrtsoftplus
                                                            : cuda::score_logits;
    return numbers;
}

} // namespace

struct RayCandidates::Built {
    RouteArrays arrays; ///< where the geometry came from
    optix::SphereSearch search;

    explicit Built(const cuda::StepArguments &a)
        : arrays(a.arrays),
          search(cuda::current_device(), HostArrays(a).geometry, score_of(a.spec.rule)) {}

    [[nodiscard]] bool is_of(const RouteArrays &other) const {
        return arrays.projection == other.projection && arrays.directions == other.directions &&
               arrays.beta == other.beta && arrays.spread == other.spread &&
               arrays.mean == other.mean && arrays.choice_bias == other.choice_bias;
    }
};

bool rays_present() {
    return optix::rays_absent().empty();
}

bool RayCandidates::run(const cuda::StepArguments &step, std::int32_t *out, void *stream) {
    if (!rays_fit(step.spec) || !rays_present() || optix::is_capturing(stream)) {
        return false;
    }
    const cuda::CurrentContext context(cuda::current_device());
    if (built_ == nullptr || !built_->is_of(step.arrays)) {
        cuda::check(cuda::driver().stream_synchronize(stream), "cuStreamSynchronize");
        built_ = std::make_unique<Built>(step);
    }
    optix::SearchCall call{reinterpret_cast<cuda::Address>(step.hidden), step.spec.hidden,
                           step.tokens, static_cast<std::int32_t>(step.scalar)};
    call.ids = out;
    call.count = step.spec.candidates;
    call.stream = stream;
    built_->search.run(call);
    return true;
}

#else

struct RayCandidates::Built {};

bool rays_present() {
    return false;
}

bool RayCandidates::run(const cuda::StepArguments &, std::int32_t *, void *) {
    return false;
}

#endif

RayCandidates::RayCandidates() = default;
RayCandidates::~RayCandidates() = default;

} // namespace spectral::trt
