// Checks a BVH's topology and computes the bounds of its nodes.
#include "spectral/binary_tree.h"

#include <algorithm>
#include <limits>
#include <string>

#include "spectral/error.h"

namespace spectral {
namespace {

using Node = BinaryTree::Node;

[[noreturn]] void refuse(const std::string &expected, const std::string &found) {
    throw UserError("bvh", expected, found, "rebuild the tree with build_bvh");
}

void check_permutation(const Topology &t) {
    std::vector<bool> seen(t.experts, false);
    for (std::size_t i = 0; i < t.experts; ++i) {
        const auto e = static_cast<std::size_t>(t.permutation[i]);
        if (t.permutation[i] < 0 || e >= t.experts || seen[e]) {
            refuse("experts to be a permutation",
                   "entry " + std::to_string(i) + " = " + std::to_string(t.permutation[i]));
        }
        seen[e] = true;
    }
}

/// Depth-first copy that puts the experts of every subtree side by side and halves large leaves.
class Reader {
  public:
    Reader(const Topology &topology, BinaryTree &tree) : t_(topology), tree_(tree) {}

    void run() {
        tree_.nodes.push_back({});
        stack_.push_back({0, 0});
        while (!stack_.empty()) {
            const auto [source, target] = stack_.back();
            stack_.pop_back();
            if (++visited_ > t_.nodes) {
                refuse("every node to have one parent", "a node that is reached twice");
            }
            t_.count[source] > 0 ? copy_leaf(source, target) : open(source, target);
        }
        if (visited_ != t_.nodes || tree_.order.size() != t_.experts) {
            refuse(std::to_string(t_.nodes) + " nodes over " + std::to_string(t_.experts) +
                       " experts",
                   std::to_string(visited_) + " nodes over " + std::to_string(tree_.order.size()));
        }
    }

  private:
    struct Step {
        std::size_t source, target;
    };

    void open(std::size_t source, std::size_t target) {
        const auto child = static_cast<std::size_t>(t_.first[source]);
        if (t_.first[source] < 0 || child <= source || child + 1 >= t_.nodes ||
            t_.count[source] < 0) {
            refuse("children after their parent", "node " + std::to_string(source) +
                                                      " with first " +
                                                      std::to_string(t_.first[source]));
        }
        const std::size_t pair = add_pair(target);
        stack_.push_back({child + 1, pair + 1});
        stack_.push_back({child, pair});
    }

    void copy_leaf(std::size_t source, std::size_t target) {
        const auto first = static_cast<std::size_t>(t_.first[source]);
        const auto count = static_cast<std::size_t>(t_.count[source]);
        if (t_.first[source] < 0 || count > t_.experts || first > t_.experts - count ||
            tree_.order.size() + count > t_.experts) {
            refuse("leaves inside the permutation", "leaf " + std::to_string(source));
        }
        const std::size_t begin = tree_.order.size();
        tree_.order.insert(tree_.order.end(), t_.permutation + first,
                           t_.permutation + first + count);
        halve(target, begin, count);
    }

    void halve(std::size_t target, std::size_t begin, std::size_t count) {
        tree_.nodes[target].begin = static_cast<std::int32_t>(begin);
        tree_.nodes[target].count = static_cast<std::int32_t>(count);
        if (count > leaf_experts) {
            const std::size_t half = (count / 2 + leaf_experts - 1) / leaf_experts * leaf_experts;
            const std::size_t pair = add_pair(target);
            halve(pair, begin, half);
            halve(pair + 1, begin + half, count - half);
        }
    }

    std::size_t add_pair(std::size_t parent) {
        const std::size_t pair = tree_.nodes.size();
        tree_.nodes.resize(pair + 2);
        tree_.nodes[parent].child = static_cast<std::int32_t>(pair);
        return pair;
    }

    const Topology &t_;
    BinaryTree &tree_;
    std::vector<Step> stack_;
    std::size_t visited_ = 0;
};

void include_expert(const Geometry &g, std::size_t e, float *row) {
    const std::size_t rank = g.rank();
    for (std::size_t r = 0; r < rank; ++r) {
        const float x = g.coordinate(e, r);
        row[r] = std::min(row[r], x);
        row[rank + r] = std::max(row[rank + r], x);
    }
    for (std::size_t l = 0; l < g.levels; ++l) {
        const float *c = g.centres + (l * g.experts + e) * 3;
        const float squared = c[0] * c[0] + c[1] * c[1] + c[2] * c[2];
        float &power = row[2 * rank + l];
        power = std::max(power, l == 0 ? squared + g.beta[e] : squared);
    }
    float *last = row + 2 * rank + g.levels;
    last[0] = std::max(last[0], g.beta[e]);
    last[1] = std::max(last[1], g.choice_bias != nullptr ? g.choice_bias[e] : 0.0F);
}

void include_child(std::size_t rank, std::size_t rows, const float *child, float *row) {
    for (std::size_t r = 0; r < rank; ++r) {
        row[r] = std::min(row[r], child[r]);
    }
    for (std::size_t r = rank; r < rows; ++r) {
        row[r] = std::max(row[r], child[r]);
    }
}

/// Children follow their parent, so one backward pass sees them first.
void compute_bounds(const Geometry &g, BinaryTree &tree) {
    const std::size_t rank = g.rank();
    tree.rows = 2 * rank + g.levels + 2;
    tree.bounds.assign(tree.nodes.size() * tree.rows, -std::numeric_limits<float>::infinity());
    for (std::size_t n = tree.nodes.size(); n-- > 0;) {
        Node &node = tree.nodes[n];
        float *row = tree.bounds.data() + n * tree.rows;
        std::fill_n(row, rank, std::numeric_limits<float>::infinity());
        if (node.child >= 0) {
            const auto child = static_cast<std::size_t>(node.child);
            include_child(rank, tree.rows, tree.bounds_of(child), row);
            include_child(rank, tree.rows, tree.bounds_of(child + 1), row);
            node.begin = tree.nodes[child].begin;
            node.count = tree.nodes[child].count + tree.nodes[child + 1].count;
            continue;
        }
        for (std::int32_t i = 0; i < node.count; ++i) {
            const auto slot = static_cast<std::size_t>(node.begin + i);
            include_expert(g, static_cast<std::size_t>(tree.order[slot]), row);
        }
    }
}

} // namespace

BinaryTree read_binary_tree(const Geometry &geometry, const Topology &topology) {
    if (topology.nodes == 0 || topology.experts != geometry.experts) {
        refuse(std::to_string(geometry.experts) + " experts in at least one node",
               std::to_string(topology.experts) + " in " + std::to_string(topology.nodes));
    }
    check_permutation(topology);
    BinaryTree tree;
    tree.order.reserve(topology.experts);
    Reader(topology, tree).run();
    compute_bounds(geometry, tree);
    return tree;
}

bool fits_a_block(const BinaryTree &tree, std::size_t node, std::size_t width) {
    return tree.nodes[node].count <= static_cast<std::int32_t>(width);
}

std::vector<std::size_t> widen(const BinaryTree &tree, std::size_t node, std::size_t width) {
    std::vector<std::size_t> children{node};
    while (children.size() < width) {
        auto largest = std::ranges::max_element(children, {},
                                                [&](std::size_t c) { return tree.nodes[c].count; });
        if (fits_a_block(tree, *largest, width)) {
            break;
        }
        const auto pair = static_cast<std::size_t>(tree.nodes[*largest].child);
        *largest = pair;
        children.push_back(pair + 1);
    }
    return children;
}

} // namespace spectral
