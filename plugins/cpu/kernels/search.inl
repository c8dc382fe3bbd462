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
/// Queue length from which entries below the threshold are dropped before each pop.
inline constexpr std::size_t compact_size = 256;
/// Largest C that is kept sorted by insertion.
inline constexpr std::size_t insert_limit = 32;

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

/// The queue is two plain arrays: a push is a compress, a pop compares all. It rarely holds over a
/// hundred entries, and a heap pays one mispredicted branch for each of its levels.
struct Queue {
    float *bounds;
    std::int32_t *children;
    std::size_t size;
};

/// Position of the best bound; the queue is not empty.
inline std::size_t best_of(Queue &q) {
    const std::size_t blocks = (q.size + lanes - 1) / lanes;
    store(q.bounds + q.size, set1(-__builtin_inff()));
    Floats best = load(q.bounds);
    for (std::size_t b = 1; b < blocks; ++b) {
        best = max(load(q.bounds + b * lanes), best);
    }
    const Floats top = set1(maximum(best));
    for (std::size_t b = 0; b < blocks; ++b) {
        const Mask m = not_less(load(q.bounds + b * lanes), top);
        if (m != 0) {
            return b * lanes + static_cast<std::size_t>(__builtin_ctz(m));
        }
    }
    return 0;
}

/// Forgets what a raised threshold has overtaken.
inline void compact(Queue &q, float threshold) {
    const std::size_t blocks = (q.size + lanes - 1) / lanes;
    store(q.bounds + q.size, set1(-__builtin_inff()));
    const std::size_t last = q.size % lanes == 0 ? 0xFFFFU : (1U << (q.size % lanes)) - 1U;
    q.size = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
        const Floats bounds = load(q.bounds + b * lanes);
        const Ints children = load(q.children + b * lanes);
        const Mask valid = b + 1 == blocks ? static_cast<Mask>(last) : 0xFFFFU;
        const Mask m = not_less(bounds, set1(threshold)) & valid;
        compress(q.bounds + q.size, m, bounds);
        compress(q.children + q.size, m, children);
        q.size += bits_set(m);
    }
}

inline void open_leaf(const TreeView &tree, ChoiceView choice, const float *point,
                      std::size_t block, Selection &s) {
    const BlocksView &v = tree.leaves;
    alignas(64) float scores[lanes];
    score_tile<1, 1>(v, block, point, v.rank, scores, lanes);
    const float *bias = v.values + ((block + 1) * (v.rank + 2) - 1) * lanes;
    const Floats chosen = choose(choice, load(scores), bias);
    const std::int32_t *ids = v.ids + block * lanes;
    if (s.held < s.count || s.count > insert_limit) {
        const std::size_t held = s.held;
        accept(s, chosen, ids, v.valid[block]);
        if (s.held > held && s.held >= s.count) {
            prune(s);
        }
        return;
    }
    store(scores, chosen);
    for (Mask m = not_less(chosen, set1(s.threshold)) & v.valid[block]; m != 0; m &= m - 1) {
        const auto lane = static_cast<std::size_t>(__builtin_ctz(m));
        insert(s, scores[lane], ids[lane]);
    }
    const float worst = s.scores[s.count - 1];
    s.threshold = worst > s.threshold ? worst : s.threshold;
}

inline void open_node(const TreeView &tree, ChoiceView choice, const Query &query, std::size_t node,
                      float threshold, Queue &q) {
    const std::size_t rows = 2 * tree.leaves.rank + tree.levels + 2;
    // A bound that is NaN bounds nothing: min() turns it into infinity.
    const Floats bounds = min(child_bounds(tree, choice, query, tree.values + node * rows * lanes),
                              set1(__builtin_inff()));
    const Mask m = not_less(bounds, set1(threshold)) & tree.valid[node];
    compress(q.bounds + q.size, m, bounds);
    compress(q.children + q.size, m, load(tree.children + node * lanes));
    q.size += bits_set(m);
}

/// One token's search between two of its turns.
struct Search {
    Query query;
    Queue queue;
    Selection *selection;
    std::size_t opened;
    std::int32_t child; ///< what the next turn opens: a node, or the complement of a leaf block
    bool active, found;
};

inline void prefetch(const void *begin, std::size_t bytes) {
    const char *p = static_cast<const char *>(begin);
    for (std::size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(p + i);
    }
}

inline void prefetch_child(const TreeView &tree, std::int32_t child) {
    const std::size_t row = lanes * sizeof(float);
    const std::size_t rank = tree.leaves.rank;
    if (child >= 0) {
        const std::size_t rows = 2 * rank + tree.levels + 2;
        prefetch(tree.values + static_cast<std::size_t>(child) * rows * lanes, rows * row);
        prefetch(tree.children + static_cast<std::size_t>(child) * lanes, row);
    } else {
        const std::size_t block = static_cast<std::size_t>(~child) * (rank + 2) * lanes;
        prefetch(tree.leaves.values + block, (rank + 1) * row);
        prefetch(tree.leaves.ids + static_cast<std::size_t>(~child) * lanes, row);
    }
}

/// Opens the chosen child and chooses the next one.
inline void take_turn(const TreeView &tree, ChoiceView choice, Search &s, SearchCount &count) {
    if (++s.opened > tree.budget) {
        s.active = false;
        return;
    }
    Queue &q = s.queue;
    if (s.child >= 0) {
        ++count.nodes;
        open_node(tree, choice, s.query, static_cast<std::size_t>(s.child), s.selection->threshold,
                  q);
    } else {
        ++count.leaves;
        open_leaf(tree, choice, s.query.point, static_cast<std::size_t>(~s.child), *s.selection);
    }
    if (q.size > compact_size) {
        compact(q, s.selection->threshold);
    }
    const std::size_t best = q.size == 0 ? 0 : best_of(q);
    if (q.size == 0 || q.bounds[best] < s.selection->threshold) {
        s.active = false;
        s.found = true;
        return;
    }
    s.child = q.children[best];
    q.bounds[best] = q.bounds[--q.size];
    q.children[best] = q.children[q.size];
    prefetch_child(tree, s.child);
}

void search(const TreeView &tree, ChoiceView choice, const float *points, std::size_t stride,
            std::size_t tokens, const Workspace *workspaces, Selection *selections,
            SearchCount &count, bool *found) {
    Search searches[search_tokens];
    for (std::size_t t = 0; t < tokens; ++t) {
        const Workspace &w = workspaces[t];
        Search &s = searches[t];
        s.query = {points + t * stride, w.floats, w.edges, w.floats + tree.leaves.rank, 0.0F};
        s.queue = {w.bounds, w.children, 0};
        s.selection = &selections[t];
        s.opened = 0;
        s.child = 0;
        s.found = false;
        s.active = prepare(tree, s.query);
    }
    for (bool any = true; any;) {
        any = false;
        for (std::size_t t = 0; t < tokens; ++t) {
            if (searches[t].active) {
                take_turn(tree, choice, searches[t], count);
                any = true;
            }
        }
    }
    for (std::size_t t = 0; t < tokens; ++t) {
        found[t] = searches[t].found;
        if (found[t]) {
            finish(selections[t]);
        }
    }
}
