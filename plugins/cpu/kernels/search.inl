// Best-first search of the 16-wide tree.
//
// A child's bound is, summed over levels, the smaller of two bounds of 2 c.p over its box: the
// interval bound, and the power bound |p|^2 + max(|c|^2) - dist^2(p, box); plus the interval bound
// of the colour. Level 1 takes beta in (the power row already holds it). Conservative in float32:
// with u = 2^-24 a score and a bound each suffer at most about (R + L + S + 8) rounding errors
// relative to
//     A = |beta| + sum_r |coefficient_r| |q_r|  +  sum_l 4 (|p_l|^2 + |c_l|^2 + max power),
// taken with the largest coordinates of the whole layer; `slack` adds 4 (R + 8) u A. Beyond 1e37
// sums could overflow, and the caller scans instead.

struct Query {
    const float *point;  ///< [R]
    float *doubled;      ///< [R], 2 p for points, f for colour
    std::uint32_t *edge; ///< [R], row of the box side that maximises this coordinate's term
    float *constant;     ///< [L], |p_l|^2
    float slack;
};

inline constexpr float search_range = 1e37F;

inline bool prepare(const TreeView &tree, Query &q) {
    const std::size_t rank = tree.leaves.rank;
    const std::size_t points = 3 * tree.levels;
    float reach = tree.beta_reach;
    for (std::size_t r = 0; r < rank; ++r) {
        const float x = q.point[r];
        q.doubled[r] = r < points ? 2.0F * x : x;
        q.edge[r] = static_cast<std::uint32_t>(x >= 0.0F ? rank + r : r);
        const float m = tree.reach[r];
        reach += __builtin_fabsf(q.doubled[r]) * m + (r < points ? 8.0F * (x * x + m * m) : 0.0F);
    }
    for (std::size_t l = 0; l < tree.levels; ++l) {
        const float *p = q.point + 3 * l;
        q.constant[l] = p[0] * p[0] + p[1] * p[1] + p[2] * p[2];
    }
    q.slack = 4.0F * (static_cast<float>(rank) + 8.0F) * 0x1p-24F * reach + 0x1p-120F;
    return reach < search_range;
}

inline Floats level_bound(const float *node, const TreeView &tree, const Query &q,
                          std::size_t level, Floats interval) {
    const std::size_t rank = tree.leaves.rank;
    const Floats zero = set1(0.0F);
    Floats power = add(load(node + (2 * rank + level) * lanes), set1(q.constant[level]));
    for (std::size_t r = 3 * level; r < 3 * level + 3; ++r) {
        const Floats p = set1(q.point[r]);
        const Floats below = sub(load(node + r * lanes), p);
        const Floats above = sub(p, load(node + (rank + r) * lanes));
        const Floats gap = max(max(below, above), zero);
        power = sub(power, mul(gap, gap));
        interval = fma(load(node + q.edge[r] * lanes), set1(q.doubled[r]), interval);
    }
    return min(power, interval);
}

/// Upper bounds of the choice scores below the 16 children of a node.
inline Floats child_bounds(const TreeView &tree, ChoiceView choice, const Query &q,
                           const float *node) {
    const std::size_t rank = tree.leaves.rank;
    const float *beta = node + (2 * rank + tree.levels) * lanes;
    Floats bound = load(beta);
    if (tree.levels > 0) {
        bound = level_bound(node, tree, q, 0, bound);
    }
    for (std::size_t l = 1; l < tree.levels; ++l) {
        bound = add(bound, level_bound(node, tree, q, l, set1(0.0F)));
    }
    for (std::size_t r = 3 * tree.levels; r < rank; ++r) {
        bound = fma(load(node + q.edge[r] * lanes), set1(q.doubled[r]), bound);
    }
    return choose_bound(choice, add(bound, set1(q.slack)), beta + lanes);
}

inline std::uint64_t entry_of(float bound, std::int32_t child) {
    const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, bound + 0.0F);
    const std::uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
    return static_cast<std::uint64_t>(ordered) << 32 | static_cast<std::uint32_t>(child);
}

inline float bound_of(std::uint64_t entry) {
    const auto ordered = static_cast<std::uint32_t>(entry >> 32);
    return __builtin_bit_cast(float, (ordered >> 31) != 0 ? ordered & 0x7FFFFFFFU : ~ordered);
}

inline void push(std::uint64_t *heap, std::size_t &size, std::uint64_t entry) {
    std::size_t i = size++;
    while (i > 0 && heap[(i - 1) / 2] < entry) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = entry;
}

inline std::uint64_t pop(std::uint64_t *heap, std::size_t &size) {
    const std::uint64_t best = heap[0];
    const std::uint64_t last = heap[--size];
    std::size_t i = 0;
    for (std::size_t child = 1; child < size; child = 2 * i + 1) {
        child += child + 1 < size && heap[child + 1] > heap[child] ? 1 : 0;
        if (heap[child] <= last) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return best;
}

inline void open_leaf(const TreeView &tree, ChoiceView choice, const float *point,
                      std::size_t block, Selection &s) {
    const BlocksView &v = tree.leaves;
    alignas(64) float scores[lanes];
    score_tile<1, 1>(v, block, point, v.rank, scores, lanes);
    const float *bias = v.values + (block * (v.rank + 2) + 1) * lanes;
    accept(s, choose(choice, load(scores), bias), v.ids + block * lanes, v.valid[block]);
    if (s.held >= s.count) {
        prune(s);
    }
}

inline void open_node(const TreeView &tree, ChoiceView choice, const Query &q, std::size_t node,
                      float threshold, Workspace w, std::size_t &queued) {
    const std::size_t rows = 2 * tree.leaves.rank + tree.levels + 2;
    const Floats bounds = child_bounds(tree, choice, q, tree.values + node * rows * lanes);
    alignas(64) float bound[lanes];
    store(bound, bounds);
    Mask m = not_less(bounds, set1(threshold)) & tree.valid[node];
    for (; m != 0; m &= m - 1) {
        const int lane = __builtin_ctz(m);
        const float b = bound[lane] == bound[lane] ? bound[lane] : __builtin_inff();
        push(w.queue, queued,
             entry_of(b, tree.children[node * lanes + static_cast<std::size_t>(lane)]));
    }
}

bool search(const TreeView &tree, ChoiceView choice, const float *point, Workspace w, Selection &s,
            SearchCount &count) {
    const std::size_t rank = tree.leaves.rank;
    Query q{point, w.floats, w.edges, w.floats + rank, 0.0F};
    if (!prepare(tree, q)) {
        return false;
    }
    std::size_t queued = 0;
    std::size_t opened = 0;
    push(w.queue, queued, entry_of(__builtin_inff(), 0));
    while (queued > 0) {
        const std::uint64_t entry = pop(w.queue, queued);
        if (bound_of(entry) < s.threshold) {
            break;
        }
        const auto child = static_cast<std::int32_t>(static_cast<std::uint32_t>(entry));
        if (child >= 0) {
            ++count.nodes;
            open_node(tree, choice, q, static_cast<std::size_t>(child), s.threshold, w, queued);
            continue;
        }
        if (++opened > tree.budget) {
            return false;
        }
        open_leaf(tree, choice, point, static_cast<std::size_t>(~child), s);
    }
    count.leaves += opened;
    finish(s);
    return true;
}
