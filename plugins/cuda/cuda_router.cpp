// Uploads a geometry and launches the route kernels.
#include "cuda_router.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "cuda_gate.h"
#include "device_tree.h"
#include "kernel_module.h"
#include "spectral/error.h"
#include "thresholds.h"

namespace spectral::cuda {
namespace {

/// bfloat16 by rounding to nearest even.
std::uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

float from_bf16(std::uint16_t half) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
}

/// A float32 matrix as three bf16 summands, exact to 24 bits: products with bf16 inputs keep
/// float32's precision.
std::vector<std::uint16_t> split_planes(const std::vector<float> &rows) {
    std::vector<std::uint16_t> planes(3 * rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        float rest = rows[i];
        for (std::size_t plane = 0; plane < 3; ++plane) {
            const std::uint16_t part = to_bf16(rest);
            planes[plane * rows.size() + i] = part;
            rest -= from_bf16(part);
        }
    }
    return planes;
}

template <class T> DeviceBuffer upload_vector(const std::vector<T> &values) {
    return DeviceBuffer(values.data(), values.size() * sizeof(T));
}

[[noreturn]] void refuse(const char *what, const std::string &expected, std::size_t found) {
    throw UserError(what, expected, std::to_string(found), "use the cpu back-end for this layer");
}

void check_sizes(const Geometry &g) {
    if (g.levels < 1 || g.levels > 4 || g.colours > 32) {
        refuse("geometry", "1 to 4 levels and at most 32 colours", g.rank());
    }
    if (g.hidden > (1U << 24) || g.experts > (1U << 30)) {
        refuse("geometry", "at most 2^24 hidden columns and 2^30 experts", g.experts);
    }
}

/// Blocks that keep one largest score in a scan, as a power of two: a warp's share of a short scan,
/// else 16, or as many as the list of chunks needs.
int chunk_shift_of(int blocks) {
    const int share = std::min((blocks + warps - 1) / warps, 16);
    const int listed = (blocks + max_chunks - 1) / max_chunks;
    return std::countr_zero(std::bit_ceil(static_cast<unsigned>(std::max({share, listed, 1}))));
}

} // namespace

CudaRouter::CudaRouter(Device device, const Geometry &geometry, const Topology *topology,
                       const Rule &rule)
    : device_(device), hidden_(geometry.hidden), rule_(rule) {
    check_sizes(geometry);
    const CurrentContext context(device);
    facts_ = facts_of(device);
    upload_projection(geometry);
    upload(geometry, topology);
    for (const int tokens : {1, 1 << 20}) { // loaded, so that a capture finds them
        const Workload work{tokens, 1, 1, facts_.multiprocessors, false};
        for (const int kind : {0, 1, 2, 3}) {
            kernel_named(plan_route(work, kind % 2 != 0, kind / 2 != 0, {}).shape->kernel,
                         context.handle());
        }
    }
}

void CudaRouter::upload_projection(const Geometry &g) {
    std::vector<float> rows(g.projection, g.projection + g.rank() * g.hidden);
    if (g.common != nullptr) {
        rows.insert(rows.end(), g.common, g.common + g.hidden);
    }
    std::vector<float> offset(rows.size() / g.hidden);
    for (std::size_t r = 0; r < offset.size(); ++r) {
        double sum = 0.0;
        for (std::size_t d = 0; d < g.hidden; ++d) {
            sum += static_cast<double>(rows[r * g.hidden + d]) * static_cast<double>(g.mean[d]);
        }
        offset[r] = static_cast<float>(sum);
    }
    projection_ = upload_vector(rows);
    planes_ = upload_vector(split_planes(rows));
    offset_ = upload_vector(offset);
}

void CudaRouter::upload(const Geometry &g, const Topology *topology) {
    const HostBlocks blocks = blocks_in_order(g);
    values_ = upload_vector(blocks.values);
    ids_ = upload_vector(blocks.ids);
    if (g.choice_bias != nullptr) {
        choice_bias_ = DeviceBuffer(g.choice_bias, g.experts * sizeof(float));
        rule_.choice_bias = choice_bias_.as<float>();
    }
    space_ = {offset_.as<float>(),
              values_.as<float>(),
              ids_.as<std::int32_t>(),
              static_cast<std::int32_t>(g.experts),
              static_cast<std::int32_t>(g.rank()),
              static_cast<std::int32_t>(g.levels),
              g.common != nullptr ? 1 : 0,
              static_cast<std::int32_t>(blocks.count()),
              g.choice_bias != nullptr ? 1 : 0};
    if (topology == nullptr) {
        return;
    }
    const HostTree tree = widen_tree(g, *topology);
    tree_blocks_ = upload_vector(tree.blocks.values);
    tree_ids_ = upload_vector(tree.blocks.ids);
    tree_values_ = upload_vector(tree.values);
    tree_children_ = upload_vector(tree.children);
    reach_ = upload_vector(tree.reach);
    tree_ = {tree_values_.as<float>(), tree_children_.as<std::int32_t>(), reach_.as<float>(),
             tree.roots};
    tree_space_ = space_;
    tree_space_.blocks = tree_blocks_.as<float>();
    tree_space_.ids = tree_ids_.as<std::int32_t>();
    tree_space_.block_count = static_cast<std::int32_t>(tree.blocks.count());
}

bool CudaRouter::searches(Method method) const {
    if (method == Method::search && !has_tree()) {
        throw UserError("method", "a router with a tree", "'search' without one", "pass a Bvh");
    }
    return method == Method::search ||
           (method == Method::automatic && has_tree() &&
            tree_pays(space_.experts, static_cast<std::size_t>(space_.rank)));
}

RouteArguments CudaRouter::arguments(const RouteCall &call, bool matrix) const {
    RouteArguments a{};
    a.product.x = reinterpret_cast<const void *>(call.x);
    a.product.weight = matrix ? planes_.as<void>() : projection_.as<void>();
    a.product.stride = call.stride;
    a.product.tokens = call.tokens;
    a.product.hidden = static_cast<std::int32_t>(hidden_);
    a.product.outputs = space_.rank + space_.common;
    a.product.planes = matrix ? 3 : 1;
    a.product.x_dtype = call.x_dtype;
    a.rule = rule_;
    a.output = call.output;
    a.rerank = call.rerank;
    return a;
}

void CudaRouter::run(const RouteCall &call, bool rows) const {
    if (call.tokens == 0) {
        return;
    }
    const CurrentContext context(device_);
    const bool matrix =
        call.x_dtype == dtype_bf16 && hidden_ % 8 == 0 && call.stride % 8 == 0 && call.x % 16 == 0;
    RouteArguments a = arguments(call, matrix);
    // A listing of all logits is in the order of the ids: only a scan writes it.
    const bool walks = !rows && call.output.logits == nullptr && searches(call.method);
    a.search = walks ? 1 : 0;
    a.space = walks ? tree_space_ : space_;
    a.tree = tree_;
    const Workload work{call.tokens, a.product.outputs * a.product.planes, a.product.hidden,
                        facts_.multiprocessors, facts_.capability >= 90};
    const Plan plan = plan_route(work, matrix, rows, call.plan);
    a.chunk_shift = chunk_shift_of(space_.block_count);
    const int scratch = rows    ? warps * (2 * space_.experts + max_groups) * 4
                        : walks ? walk_bytes
                                : scan_bytes;
    const Grid grid = apply(plan, {work.rows, scratch}, a.product);
    launch(kernel_named(plan.shape->kernel, context.handle()),
           {grid.tiles, grid.cluster, grid.shared_bytes, call.stream, may_overlap(facts_)}, &a);
}

void CudaRouter::candidates(const RouteCall &call) const {
    const std::int32_t count = call.output.count;
    if (count < 1 || count > max_list || count > space_.experts) {
        refuse("candidates", "1 to 32 and at most E", static_cast<std::size_t>(count));
    }
    const bool plain = rule_.score == score_softmax || rule_.score == score_logits;
    if (call.output.weights != nullptr && call.rerank.gate == nullptr &&
        (!plain || rule_.choice_bias != nullptr)) {
        throw UserError("weights", "a gate to rerank with, or a plain softmax", "another rule");
    }
    run(call, false);
}

void CudaRouter::select(const RouteCall &call) const {
    check_rule(rule_);
    run(call, true);
}

void CudaRouter::candidates_on_host(const float *hidden, std::size_t tokens, Method method,
                                    Candidates out) {
    const CurrentContext context(device_);
    const std::size_t most =
        std::max<std::size_t>(1, static_cast<std::size_t>(staging_bytes) / (hidden_ * 4));
    for (std::size_t begin = 0; begin < tokens; begin += most) {
        const std::size_t batch = std::min(most, tokens - begin);
        staging_x_.reserve(batch * hidden_ * 4);
        staging_ids_.reserve(batch * out.count * 4);
        staging_scores_.reserve(batch * out.count * 4);
        check(
            driver().to_device(staging_x_.address(), hidden + begin * hidden_, batch * hidden_ * 4),
            "cuMemcpyHtoD");
        RouteCall call{staging_x_.address(), static_cast<std::int64_t>(hidden_),
                       static_cast<std::int32_t>(batch), dtype_f32};
        call.output.ids = reinterpret_cast<void *>(staging_ids_.address());
        call.output.scores = reinterpret_cast<float *>(staging_scores_.address());
        call.output.count = static_cast<std::int32_t>(out.count);
        call.method = method;
        candidates(call);
        check(driver().to_host(out.ids + begin * out.count, staging_ids_.address(),
                               batch * out.count * 4),
              "cuMemcpyDtoH");
        check(driver().to_host(out.scores + begin * out.count, staging_scores_.address(),
                               batch * out.count * 4),
              "cuMemcpyDtoH");
    }
}

void CudaRouter::scores_on_host(const float *hidden, std::size_t tokens, float *out) {
    const CurrentContext context(device_);
    const std::size_t row = std::max(hidden_, experts()) * 4;
    const std::size_t most =
        std::max<std::size_t>(1, static_cast<std::size_t>(staging_bytes) / row);
    for (std::size_t begin = 0; begin < tokens; begin += most) {
        const std::size_t batch = std::min(most, tokens - begin);
        staging_x_.reserve(batch * hidden_ * 4);
        staging_scores_.reserve(batch * experts() * 4);
        check(
            driver().to_device(staging_x_.address(), hidden + begin * hidden_, batch * hidden_ * 4),
            "cuMemcpyHtoD");
        RouteCall call{staging_x_.address(), static_cast<std::int64_t>(hidden_),
                       static_cast<std::int32_t>(batch), dtype_f32};
        call.output.logits = reinterpret_cast<void *>(staging_scores_.address());
        call.output.count = 1;
        call.method = Method::scan;
        candidates(call);
        check(driver().to_host(out + begin * experts(), staging_scores_.address(),
                               batch * experts() * 4),
              "cuMemcpyDtoH");
    }
}

} // namespace spectral::cuda
