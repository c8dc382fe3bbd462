// Collapses a binary tree into nodes of sixteen children.
#include "wide_tree.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "spectral/binary_tree.h"
#include "thresholds.h"

namespace spectral::cpu {

static_assert(leaf_experts <= lanes, "a leaf fits a block");

WideTree::WideTree(const Geometry &geometry, const Topology &topology)
    : levels_(geometry.levels), colours_(geometry.colours), budget_(0), leaves_(geometry.rank()),
      reach_(geometry.rank(), 0.0F) {
    const BinaryTree tree = read_binary_tree(geometry, topology);
    std::vector<std::size_t> queue{0};
    for (std::size_t wide = 0; wide < queue.size(); ++wide) {
        const std::vector<std::size_t> children = widen(tree, queue[wide], lanes);
        values_.resize((wide + 1) * tree.rows * lanes, 0.0F);
        children_.resize((wide + 1) * lanes, 0);
        valid_.push_back(static_cast<std::uint16_t>((1U << children.size()) - 1U));
        for (std::size_t lane = 0; lane < children.size(); ++lane) {
            const BinaryTree::Node &child = tree.nodes[children[lane]];
            for (std::size_t row = 0; row < tree.rows; ++row) {
                values_[(wide * tree.rows + row) * lanes + lane] =
                    tree.bounds_of(children[lane])[row];
            }
            if (fits_a_block(tree, children[lane], lanes)) {
                const auto ids = std::span(tree.order)
                                     .subspan(static_cast<std::size_t>(child.begin),
                                              static_cast<std::size_t>(child.count));
                children_[wide * lanes + lane] =
                    ~static_cast<std::int32_t>(leaves_.append(geometry, ids));
            } else {
                children_[wide * lanes + lane] = static_cast<std::int32_t>(queue.size());
                queue.push_back(children[lane]);
            }
        }
    }
    budget_ = std::max<std::size_t>(1, leaves_.view().blocks / search_budget_divisor);
    for (std::size_t r = 0; r < reach_.size(); ++r) {
        const float *root = tree.bounds_of(0);
        reach_[r] = std::max(std::fabs(root[r]), std::fabs(root[reach_.size() + r]));
    }
    for (std::size_t e = 0; e < geometry.experts; ++e) {
        beta_reach_ = std::max(beta_reach_, std::fabs(geometry.beta[e]));
    }
}

TreeView WideTree::view() const {
    return {levels_,        colours_,      values_.data(), children_.data(), valid_.data(),
            leaves_.view(), reach_.data(), beta_reach_,    budget_};
}

} // namespace spectral::cpu
