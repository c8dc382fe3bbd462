// Packs experts into blocks of 32 and collapses a binary tree into nodes of 32 children.
#include "device_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "kernels/params.h"
#include "spectral/binary_tree.h"

namespace spectral::cuda {
namespace {

constexpr std::size_t width = branching;

std::vector<float> reach_of(const Geometry &geometry, const BinaryTree &tree) {
    const std::size_t rank = geometry.rank();
    std::vector<float> reach(rank + 1, 0.0F);
    const float *root = tree.bounds_of(0);
    for (std::size_t r = 0; r < rank; ++r) {
        reach[r] = std::max(std::fabs(root[r]), std::fabs(root[rank + r]));
    }
    for (std::size_t e = 0; e < geometry.experts; ++e) {
        reach[rank] = std::max(reach[rank], std::fabs(geometry.beta[e]));
    }
    return reach;
}

/// Blocks of 32 that each binary node needs.
std::vector<std::int32_t> count_blocks(const BinaryTree &tree) {
    std::vector<std::int32_t> blocks(tree.nodes.size(), 1);
    for (std::size_t n = tree.nodes.size(); n-- > 0;) { // children follow their parent
        if (!fits_a_block(tree, n, width)) {
            const auto child = static_cast<std::size_t>(tree.nodes[n].child);
            blocks[n] = blocks[child] + blocks[child + 1];
        }
    }
    return blocks;
}

/// Copies a binary tree into wide nodes, breadth first.
class Collapse {
  public:
    Collapse(const Geometry &geometry, const BinaryTree &tree, HostTree &out)
        : g_(geometry), tree_(tree), out_(out), blocks_(count_blocks(tree)),
          rows_(tree.rows + g_.rank() + 2) {}

    void run() {
        const std::vector<std::size_t> top = open(0, max_roots * width);
        for (std::size_t first = 0; first < top.size(); first += width) {
            const auto begin = top.begin() + static_cast<std::ptrdiff_t>(first);
            const std::size_t count = std::min(width, top.size() - first);
            groups_.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(count));
        }
        out_.roots = static_cast<int>(groups_.size());
        for (std::size_t wide = 0; wide < groups_.size(); ++wide) {
            const std::vector<std::size_t> children = std::move(groups_[wide]);
            out_.values.resize((wide + 1) * rows_ * width, 0.0F);
            out_.children.resize((wide + 1) * width, no_child);
            for (std::size_t lane = 0; lane < children.size(); ++lane) {
                write(wide, lane, children[lane]);
            }
        }
    }

  private:
    /// Opens the child of most blocks until there are `most` children. A node of up to 32 blocks
    /// is opened down to them; above it nothing is opened that would be a node by itself.
    std::vector<std::size_t> open(std::size_t node, std::size_t most) const {
        const std::int32_t whole = blocks_[node] <= static_cast<std::int32_t>(width)
                                       ? 1
                                       : static_cast<std::int32_t>(width);
        std::vector<std::size_t> children{node};
        while (children.size() < most) {
            const auto largest = std::ranges::max_element(
                children, {}, [&](std::size_t child) { return blocks_[child]; });
            if (blocks_[*largest] <= whole) {
                break;
            }
            const auto pair = static_cast<std::size_t>(tree_.nodes[*largest].child);
            *largest = pair;
            children.push_back(pair + 1);
        }
        return children;
    }

    void write(std::size_t wide, std::size_t lane, std::size_t child) {
        float *values = out_.values.data() + wide * rows_ * width + lane;
        const float *bounds = tree_.bounds_of(child);
        for (std::size_t row = 0; row < tree_.rows; ++row) {
            values[row * width] = bounds[row];
        }
        write_expert(values + tree_.rows * width, middle_expert(child));
        std::int32_t &slot = out_.children[wide * width + lane];
        if (fits_a_block(tree_, child, width)) {
            const BinaryTree::Node &node = tree_.nodes[child];
            slot = ~out_.blocks.append(g_, tree_.order.data() + node.begin,
                                       static_cast<std::size_t>(node.count));
        } else {
            slot = static_cast<std::int32_t>(groups_.size());
            groups_.push_back(open(child, width));
        }
    }

    /// The expert that scores best in the middle of its box: a likely good one for whoever is near.
    [[nodiscard]] std::size_t middle_expert(std::size_t child) const {
        const BinaryTree::Node &node = tree_.nodes[child];
        const float *bounds = tree_.bounds_of(child);
        std::size_t best = 0;
        float most = -std::numeric_limits<float>::infinity();
        for (std::int32_t i = 0; i < node.count; ++i) {
            const auto e =
                static_cast<std::size_t>(tree_.order[static_cast<std::size_t>(node.begin + i)]);
            float score = g_.beta[e];
            for (std::size_t r = 0; r < 3 * g_.levels; ++r) {
                score += g_.direction(e, r) * 0.5F * (bounds[r] + bounds[g_.rank() + r]);
            }
            if (i == 0 || score > most) {
                most = score;
                best = e;
            }
        }
        return best;
    }

    void write_expert(float *values, std::size_t e) const {
        values[0] = g_.beta[e];
        values[width] = g_.choice_bias != nullptr ? g_.choice_bias[e] : 0.0F;
        for (std::size_t r = 0; r < g_.rank(); ++r) {
            values[(r + 2) * width] = g_.direction(e, r);
        }
    }

    const Geometry &g_;
    const BinaryTree &tree_;
    HostTree &out_;
    std::vector<std::int32_t> blocks_;
    std::size_t rows_;
    std::vector<std::vector<std::size_t>> groups_; ///< binary nodes of each wide node
};

} // namespace

std::int32_t HostBlocks::append(const Geometry &geometry, const std::int32_t *experts,
                                std::size_t count) {
    const std::size_t rank = geometry.rank();
    const std::size_t block = ids.size() / width;
    values.resize((block + 1) * (rank + 2) * width, 0.0F);
    ids.resize((block + 1) * width, -1);
    float *target = values.data() + block * (rank + 2) * width;
    for (std::size_t i = 0; i < count; ++i) {
        const auto e = static_cast<std::size_t>(experts[i]);
        ids[block * width + i] = experts[i];
        target[i] = geometry.beta[e];
        target[width + i] = geometry.choice_bias != nullptr ? geometry.choice_bias[e] : 0.0F;
        for (std::size_t r = 0; r < rank; ++r) {
            target[(r + 2) * width + i] = geometry.direction(e, r);
        }
    }
    return static_cast<std::int32_t>(block);
}

HostBlocks blocks_in_order(const Geometry &geometry) {
    HostBlocks blocks;
    std::vector<std::int32_t> order(geometry.experts);
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t first = 0; first < order.size(); first += width) {
        blocks.append(geometry, order.data() + first, std::min(width, order.size() - first));
    }
    return blocks;
}

HostTree widen_tree(const Geometry &geometry, const Topology &topology) {
    const BinaryTree tree = read_binary_tree(geometry, topology);
    HostTree out;
    out.reach = reach_of(geometry, tree);
    Collapse(geometry, tree, out).run();
    return out;
}

} // namespace spectral::cuda
