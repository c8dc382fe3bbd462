// Cuts a batch into tiles of tokens and runs the kernels on each.
#include "cpu_router.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <string>

#include "dispatch.h"
#include "spectral/error.h"
#include "thread_pool.h"
#include "thresholds.h"

namespace spectral::cpu {

static_assert(search_tokens == scan_tokens, "route_tile cuts one kind of group");

namespace {

inline constexpr std::size_t tile_limit = 16;
/// Bytes of directions that a projection pass may keep in the L1 cache.
inline constexpr std::size_t projection_bytes = 24 * 1024;

std::size_t round_up(std::size_t n) {
    return (n + lanes - 1) / lanes * lanes;
}

struct Queue {
    Aligned<float> bounds, floats;
    Aligned<std::int32_t> children;
    Aligned<std::uint32_t> edges;
};

/// Memory of one thread, kept between calls.
struct Scratch {
    Aligned<float> sums, points, scores;
    std::array<Aligned<float>, scan_tokens> best;
    std::array<Aligned<std::int32_t>, scan_tokens> ids;
    std::array<Queue, search_tokens> queues;

    static Scratch &mine() {
        thread_local Scratch scratch;
        return scratch;
    }

    Selection selection(std::size_t slot, std::size_t count) {
        const std::size_t capacity = count + lanes * chunk_blocks + 128;
        grow(best[slot], capacity + lanes);
        grow(ids[slot], capacity + lanes);
        return {count,
                capacity,
                0,
                -std::numeric_limits<float>::infinity(),
                best[slot].data(),
                ids[slot].data()};
    }

    Workspace workspace(std::size_t slot, std::size_t nodes, std::size_t floats) {
        Queue &q = queues[slot];
        grow(q.bounds, (nodes + 2) * lanes);
        grow(q.children, (nodes + 2) * lanes);
        grow(q.floats, floats);
        grow(q.edges, floats);
        return {q.bounds.data(), q.children.data(), q.floats.data(), q.edges.data()};
    }

    template <class Vector> static void grow(Vector &vector, std::size_t size) {
        if (vector.size() < size) {
            vector.resize(size);
        }
    }
};

void write(const Selection &s, Candidates out) {
    std::copy_n(s.ids, s.held, out.ids);
    std::copy_n(s.scores, s.held, out.scores);
}

Candidates row_of(Candidates out, std::size_t t) {
    return {out.count, out.ids + t * out.count, out.scores + t * out.count};
}

} // namespace

/// What the tiles of one call share.
struct CpuRouter::Call {
    bool search;
    bool stubborn; ///< the caller asked for the search: no budget, no fall-back
    std::atomic<std::uint64_t> nodes{0}, leaves{0}, searched{0}, scanned{0};

    [[nodiscard]] RouteStatistics statistics() const { return {nodes, leaves, searched, scanned}; }
};

CpuRouter::CpuRouter(const Geometry &geometry, const Topology *topology, const RouterConfig &config)
    : hidden_(geometry.hidden), rank_(geometry.rank()), experts_(geometry.experts),
      common_(geometry.common != nullptr), choice_{config.choice, geometry.choice_bias != nullptr},
      kernels_(kernels_for(config.simd.c_str())), executor_(shared_pool(config.threads)),
      blocks_(pack_in_order(geometry)), mean_(round_up(hidden_), 0.0F),
      directions_((rank_ + 1) * round_up(hidden_), 0.0F) {
    if (topology != nullptr) {
        tree_.emplace(geometry, *topology);
    }
    std::copy_n(geometry.mean, hidden_, mean_.begin());
    for (std::size_t r = 0; r < rank_; ++r) {
        std::copy_n(geometry.projection + r * hidden_, hidden_,
                    directions_.data() + r * round_up(hidden_));
    }
    if (common_) {
        std::copy_n(geometry.common, hidden_, directions_.data() + rank_ * round_up(hidden_));
    }
}

ProjectionView CpuRouter::projection(std::size_t rows) const {
    const std::size_t fit = projection_bytes / sizeof(float) / rows / lanes * lanes;
    return {hidden_,      round_up(hidden_), rows, std::max(4 * lanes, fit),
            mean_.data(), directions_.data()};
}

/// Fewer tokens a tile when the batch is small, so that every thread gets one.
std::size_t CpuRouter::tile_of(std::size_t tokens) const {
    const std::size_t share = (tokens + executor_->threads() - 1) / executor_->threads();
    return std::clamp((share + scan_tokens - 1) / scan_tokens * scan_tokens, scan_tokens,
                      tile_limit);
}

void CpuRouter::check(Method method, Candidates out) const {
    if (out.count < 1 || out.count > experts_) {
        throw UserError("count", "1 to " + std::to_string(experts_) + " (the experts)",
                        std::to_string(out.count));
    }
    if (method == Method::search && !tree_) {
        throw UserError("method", "a router with a tree", "'search' without one", "pass a Bvh");
    }
}

void CpuRouter::scores(const float *hidden, std::size_t tokens, float *out) {
    const std::size_t tile = tile_of(tokens);
    executor_->run((tokens + tile - 1) / tile, [&](std::size_t i) {
        const std::size_t begin = i * tile;
        score_tile(hidden + begin * hidden_, std::min(tile, tokens - begin),
                   out + begin * experts_);
    });
}

void CpuRouter::score_tile(const float *hidden, std::size_t tokens, float *out) const {
    Scratch &scratch = Scratch::mine();
    const std::size_t rows = rank_ + (common_ ? 1 : 0);
    const std::size_t width = chunk_blocks * lanes;
    Scratch::grow(scratch.sums, tokens * rows * lanes);
    Scratch::grow(scratch.points, tokens * rows);
    Scratch::grow(scratch.scores, tokens * width);
    kernels_.project(projection(rows), hidden, tokens, scratch.sums.data(), scratch.points.data());
    const BlocksView view = blocks_.view();
    for (std::size_t first = 0; first < view.blocks; first += chunk_blocks) {
        const std::size_t blocks = std::min(chunk_blocks, view.blocks - first);
        const std::size_t columns = std::min(blocks * lanes, experts_ - first * lanes);
        kernels_.score(view, first, blocks, scratch.points.data(), rows, tokens,
                       scratch.scores.data());
        for (std::size_t t = 0; t < tokens; ++t) {
            const float common = common_ ? scratch.points[t * rows + rank_] : 0.0F;
            const float *row = scratch.scores.data() + t * blocks * lanes;
            std::transform(row, row + columns, out + t * experts_ + first * lanes,
                           [common](float score) { return score + common; });
        }
    }
}

RouteStatistics CpuRouter::route(const float *hidden, std::size_t tokens, Method method,
                                 Candidates out) {
    check(method, out);
    Call call{use_search(method), method == Method::search};
    const std::size_t tile = tile_of(tokens);
    executor_->run((tokens + tile - 1) / tile, [&](std::size_t i) {
        Scratch &scratch = Scratch::mine();
        const std::size_t begin = i * tile;
        const std::size_t count = std::min(tile, tokens - begin);
        Scratch::grow(scratch.sums, count * rank_ * lanes);
        Scratch::grow(scratch.points, count * rank_);
        kernels_.project(projection(rank_), hidden + begin * hidden_, count, scratch.sums.data(),
                         scratch.points.data());
        route_tile(call, scratch.points.data(), count, row_of(out, begin));
    });
    return call.statistics();
}

RouteStatistics CpuRouter::route_points(const float *points, std::size_t tokens, Method method,
                                        Candidates out) {
    check(method, out);
    Call call{use_search(method), method == Method::search};
    const std::size_t tile = tile_of(tokens);
    executor_->run((tokens + tile - 1) / tile, [&](std::size_t i) {
        const std::size_t begin = i * tile;
        route_tile(call, points + begin * rank_, std::min(tile, tokens - begin),
                   row_of(out, begin));
    });
    return call.statistics();
}

/// Searches while that pays, else scans; both give the same answer.
void CpuRouter::route_tile(Call &call, const float *points, std::size_t tokens,
                           Candidates out) const {
    for (std::size_t t = 0; t < tokens; t += scan_tokens) {
        const std::size_t count = std::min(scan_tokens, tokens - t);
        if (worth_searching(call)) {
            search(call, points + t * rank_, count, row_of(out, t));
        } else {
            scan(call, points + t * rank_, count, row_of(out, t));
        }
    }
}

/// False while more than a quarter of the recent searches ran out of budget, but for one group
/// in 64.
bool CpuRouter::worth_searching(const Call &call) const {
    if (!call.search || call.stubborn) {
        return call.search;
    }
    const std::uint32_t failed = failed_.load(std::memory_order_relaxed);
    const std::uint32_t tried = tried_.load(std::memory_order_relaxed);
    return failed * 4 <= tried || skipped_.fetch_add(1, std::memory_order_relaxed) % 64 == 0;
}

/// Counts that forget: both are halved now and then. Threads may race here; no answer depends on
/// it.
void CpuRouter::note(std::size_t tried, std::size_t failed) const {
    const std::uint32_t all =
        tried_.fetch_add(static_cast<std::uint32_t>(tried), std::memory_order_relaxed);
    failed_.fetch_add(static_cast<std::uint32_t>(failed), std::memory_order_relaxed);
    if (all > 256) {
        tried_.store(all / 2, std::memory_order_relaxed);
        failed_.store(failed_.load(std::memory_order_relaxed) / 2, std::memory_order_relaxed);
    }
}

void CpuRouter::scan(Call &call, const float *points, std::size_t tokens, Candidates out) const {
    Scratch &scratch = Scratch::mine();
    std::array<Selection, scan_tokens> selections;
    Scratch::grow(scratch.scores, scan_tokens * chunk_blocks * lanes);
    for (std::size_t t = 0; t < tokens; ++t) {
        selections[t] = scratch.selection(t, out.count);
    }
    kernels_.scan(blocks_.view(), choice_, points, rank_, tokens, scratch.scores.data(),
                  selections.data());
    for (std::size_t t = 0; t < tokens; ++t) {
        kernels_.finish(selections[t]);
        write(selections[t], row_of(out, t));
    }
    call.scanned += tokens;
}

void CpuRouter::search(Call &call, const float *points, std::size_t tokens, Candidates out) const {
    Scratch &scratch = Scratch::mine();
    TreeView tree = tree_->view();
    tree.budget = call.stubborn ? std::numeric_limits<std::size_t>::max() : tree.budget;
    std::array<Workspace, search_tokens> workspaces;
    std::array<Selection, search_tokens> selections;
    std::array<bool, search_tokens> found{};
    for (std::size_t t = 0; t < tokens; ++t) {
        workspaces[t] = scratch.workspace(t, tree_->nodes(), rank_ + tree.levels);
        selections[t] = scratch.selection(t, out.count);
    }
    SearchCount count{0, 0};
    kernels_.search(tree, choice_, points, rank_, tokens, workspaces.data(), selections.data(),
                    count, found.data());
    call.nodes += count.nodes;
    call.leaves += count.leaves;
    std::size_t failed = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
        if (found[t]) {
            write(selections[t], row_of(out, t));
            ++call.searched;
        } else {
            scan(call, points + t * rank_, 1, row_of(out, t));
            ++failed;
        }
    }
    note(tokens, failed);
}

bool CpuRouter::use_search(Method method) const {
    return method == Method::search ||
           (method == Method::automatic && tree_ && experts_ >= search_min_experts);
}

} // namespace spectral::cpu
