// Packs experts into blocks of 32 and collapses a binary tree into nodes of 32 children.
#include "device_tree.h"

#include <algorithm>
#include <cmath>
#include <numeric>

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
    std::vector<std::size_t> queue{0};
    std::vector<int> depth{1};
    for (std::size_t wide = 0; wide < queue.size(); ++wide) {
        const std::vector<std::size_t> children = widen(tree, queue[wide], width);
        out.values.resize((wide + 1) * tree.rows * width, 0.0F);
        out.children.resize((wide + 1) * width, no_child);
        out.depth = std::max(out.depth, depth[wide]);
        for (std::size_t lane = 0; lane < children.size(); ++lane) {
            const BinaryTree::Node &child = tree.nodes[children[lane]];
            for (std::size_t row = 0; row < tree.rows; ++row) {
                out.values[(wide * tree.rows + row) * width + lane] =
                    tree.bounds_of(children[lane])[row];
            }
            std::int32_t &slot = out.children[wide * width + lane];
            if (fits_a_block(tree, children[lane], width)) {
                slot = ~out.blocks.append(geometry, tree.order.data() + child.begin,
                                          static_cast<std::size_t>(child.count));
            } else {
                slot = static_cast<std::int32_t>(queue.size());
                queue.push_back(children[lane]);
                depth.push_back(depth[wide] + 1);
            }
        }
    }
    return out;
}

} // namespace spectral::cuda
