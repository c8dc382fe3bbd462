// BVH builder: large ranges level by level, the subtrees below them in parallel, bounds last.
#include "spectral/builder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <string>

#include "spectral/error.h"
#include "split_keys.h"
#include "splitter.h"

namespace spectral {
namespace {

/// Experts in a subtree that one task builds alone. Fixed: the tree must not depend on the threads.
constexpr std::size_t subtree_experts = 8192;
/// Nodes whose bounds one task computes.
constexpr std::size_t bound_nodes = 2048;

struct Range {
    std::size_t node, begin, end, depth;
    [[nodiscard]] std::size_t size() const { return end - begin; }
};

struct Node {
    std::int32_t first = 0, count = 0;
};

class Builder {
  public:
    Builder(const Geometry &geometry, const BuildConfig &config, Executor &executor)
        : geometry_(geometry), config_(config), executor_(executor),
          keys_(make_split_keys(geometry, config, executor)), experts_(geometry.experts) {
        std::iota(experts_.begin(), experts_.end(), 0);
    }

    Bvh build() {
        nodes_.push_back({});
        append_subtrees(split_large_ranges());
        return finish();
    }

  private:
    [[nodiscard]] KeyedExperts experts_of(const Range &range) {
        return {std::span(experts_).subspan(range.begin, range.size()),
                keys_.rows.data() + range.begin * keys_.width};
    }

    /// Splits breadth-first until every range is small; returns the small ones in a fixed order.
    std::vector<Range> split_large_ranges() {
        std::vector<Range> small;
        std::vector<Range> frontier{{0, 0, experts_.size(), 0}};
        while (!frontier.empty()) {
            std::vector<Range> large;
            for (const Range &range : frontier) {
                (range.size() > subtree_experts ? large : small).push_back(range);
            }
            std::vector<std::size_t> sizes(large.size());
            executor_.run(large.size(), [&](std::size_t i) {
                sizes[i] = Splitter(keys_.width, config_.leaf_size)
                               .split(experts_of(large[i]), large[i].depth);
            });
            frontier.clear();
            for (std::size_t i = 0; i < large.size(); ++i) {
                const auto [left, right] = add_children(nodes_, large[i], sizes[i]);
                frontier.push_back(left);
                frontier.push_back(right);
            }
        }
        return small;
    }

    static std::pair<Range, Range> add_children(std::vector<Node> &nodes, const Range &range,
                                                std::size_t left) {
        const std::size_t child = nodes.size();
        nodes[range.node] = {static_cast<std::int32_t>(child), 0};
        nodes.resize(child + 2);
        return {{child, range.begin, range.begin + left, range.depth + 1},
                {child + 1, range.begin + left, range.end, range.depth + 1}};
    }

    /// Nodes of one subtree; its root is entry 0 and indices are local.
    std::vector<Node> build_subtree(const Range &root) {
        Splitter splitter(keys_.width, config_.leaf_size);
        std::vector<Node> nodes(1);
        std::vector<Range> stack{{0, root.begin, root.end, root.depth}};
        while (!stack.empty()) {
            const Range range = stack.back();
            stack.pop_back();
            if (range.size() <= config_.leaf_size) {
                nodes[range.node] = {static_cast<std::int32_t>(range.begin),
                                     static_cast<std::int32_t>(range.size())};
                std::ranges::sort(experts_of(range).experts);
                continue;
            }
            const std::size_t size = splitter.split(experts_of(range), range.depth);
            const auto [left, right] = add_children(nodes, range, size);
            stack.push_back(right);
            stack.push_back(left);
        }
        return nodes;
    }

    void append_subtrees(const std::vector<Range> &roots) {
        std::vector<std::vector<Node>> subtrees(roots.size());
        executor_.run(roots.size(), [&](std::size_t i) { subtrees[i] = build_subtree(roots[i]); });
        for (std::size_t i = 0; i < roots.size(); ++i) {
            const auto shift = static_cast<std::int32_t>(nodes_.size()) - 1;
            for (Node &node : subtrees[i]) {
                node.first += node.count == 0 ? shift : 0;
            }
            nodes_[roots[i].node] = subtrees[i].front();
            nodes_.insert(nodes_.end(), subtrees[i].begin() + 1, subtrees[i].end());
        }
    }

    Bvh finish() {
        const std::size_t n = nodes_.size();
        const std::size_t rank = geometry_.rank();
        constexpr float infinity = std::numeric_limits<float>::infinity();
        Bvh bvh;
        bvh.lower.assign(n * rank, infinity);
        bvh.upper.assign(n * rank, -infinity);
        bvh.power.assign(n * geometry_.levels, -infinity);
        bvh.beta.assign(n, -infinity);
        bvh.choice_bias.assign(n, -infinity);
        bvh.experts = std::move(experts_);
        for (const Node &node : nodes_) {
            bvh.first.push_back(node.first);
            bvh.count.push_back(node.count);
        }
        executor_.run((n + bound_nodes - 1) / bound_nodes, [&](std::size_t task) {
            for (std::size_t i = task * bound_nodes; i < std::min(n, (task + 1) * bound_nodes);
                 ++i) {
                bound_leaf(bvh, i);
            }
        });
        for (std::size_t i = n; i-- > 0;) {
            bound_inner(bvh, i);
        }
        return bvh;
    }

    void bound_leaf(Bvh &bvh, std::size_t node) const {
        const std::size_t rank = geometry_.rank();
        for (std::int32_t i = 0; i < bvh.count[node]; ++i) {
            const auto e = static_cast<std::size_t>(
                bvh.experts[static_cast<std::size_t>(bvh.first[node] + i)]);
            for (std::size_t r = 0; r < rank; ++r) {
                const float x = geometry_.coordinate(e, r);
                lower(bvh.lower[node * rank + r], x);
                raise(bvh.upper[node * rank + r], x);
            }
            for (std::size_t l = 0; l < geometry_.levels; ++l) {
                const float *c = geometry_.centres + (l * geometry_.experts + e) * 3;
                const float squared = c[0] * c[0] + c[1] * c[1] + c[2] * c[2];
                raise(bvh.power[node * geometry_.levels + l],
                      l == 0 ? squared + geometry_.beta[e] : squared);
            }
            raise(bvh.beta[node], geometry_.beta[e]);
            raise(bvh.choice_bias[node],
                  geometry_.choice_bias != nullptr ? geometry_.choice_bias[e] : 0.0F);
        }
    }

    void bound_inner(Bvh &bvh, std::size_t node) const {
        if (bvh.count[node] > 0) {
            return;
        }
        const auto first = static_cast<std::size_t>(bvh.first[node]);
        for (const std::size_t child : {first, first + 1}) {
            take(bvh.lower, node, child, geometry_.rank(), lower);
            take(bvh.upper, node, child, geometry_.rank(), raise);
            take(bvh.power, node, child, geometry_.levels, raise);
            raise(bvh.beta[node], bvh.beta[child]);
            raise(bvh.choice_bias[node], bvh.choice_bias[child]);
        }
    }

    static void lower(float &bound, float x) { bound = std::min(bound, x); }
    static void raise(float &bound, float x) { bound = std::max(bound, x); }
    static void take(std::vector<float> &rows, std::size_t node, std::size_t child,
                     std::size_t width, void (*combine)(float &, float)) {
        for (std::size_t i = 0; i < width; ++i) {
            combine(rows[node * width + i], rows[child * width + i]);
        }
    }

    const Geometry &geometry_;
    const BuildConfig &config_;
    Executor &executor_;
    SplitKeys keys_;
    std::vector<std::int32_t> experts_;
    std::vector<Node> nodes_;
};

} // namespace

Bvh build_bvh(const Geometry &geometry, const BuildConfig &config, Executor &executor) {
    if (config.leaf_size == 0) {
        throw UserError("leaf_size", "at least 1", "0");
    }
    if (geometry.experts == 0 || geometry.experts > std::numeric_limits<std::int32_t>::max() / 2) {
        throw UserError("experts", "1 to 2^30", std::to_string(geometry.experts));
    }
    check_finite(geometry);
    return Builder(geometry, config, executor).build();
}

} // namespace spectral
