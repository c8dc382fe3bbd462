// Chooses tile shapes and cluster sizes.
#include "launch_plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "spectral/error.h"

namespace spectral::cuda {
namespace {

constexpr std::array<TileShape, 3> gate_bf16{{{"spectral_gate_bf16_8", 8, 64},
                                              {"spectral_gate_bf16_16", 16, 64},
                                              {"spectral_gate_bf16_32", 32, 64}}};
constexpr std::array<TileShape, 1> gate_f16{{{"spectral_gate_f16_16", 16, 64}}};
constexpr std::array<TileShape, 1> gate_f32{{{"spectral_gate_f32_16", 16, 64}}};
constexpr std::array<TileShape, 2> rows_bf16{
    {{"spectral_rows_bf16_8", 8, 16}, {"spectral_rows_bf16_32", 32, 16}}};
constexpr std::array<TileShape, 1> rows_f32{{{"spectral_rows_f32_8", 8, 16}}};
constexpr std::array<TileShape, 2> lists_bf16{
    {{"spectral_lists_bf16_8", 8, 16}, {"spectral_lists_bf16_32", 32, 16}}};
constexpr std::array<TileShape, 1> lists_f32{{{"spectral_lists_f32_8", 8, 16}}};

inline constexpr int largest_cluster = 16;
/// What every supported GPU gives a block, less what kernel_module.cpp keeps for the static part.
inline constexpr int shared_limit = 80 * 1024;
inline constexpr int shared_limit_hopper = 208 * 1024;

int divide_up(int a, int b) {
    return (a + b - 1) / b;
}

int log2_of(int value) {
    return std::countr_zero(static_cast<unsigned>(value));
}

template <std::size_t N>
const TileShape *pick_shape(const std::array<TileShape, N> &shapes, int tokens) {
    for (const TileShape &shape : shapes) {
        if (shape.tokens >= tokens) {
            return &shape;
        }
    }
    return &shapes.back();
}

/// Warps side by side along the rows: a power of two that leaves none without rows.
int row_warps(int groups) {
    return std::min(warps, static_cast<int>(std::bit_ceil(static_cast<unsigned>(groups))));
}

/// Floats between two tokens of partial sums, as partial_pitch of kernels/tile.cuh.
int pitch_of_partials(const TileShape &shape, int rows) {
    return divide_up(divide_up(rows, shape.rows) * shape.rows, 32) * 32 + 8;
}

int partial_bytes(const TileShape &shape, int rows) {
    const int parts = warps / row_warps(divide_up(rows, shape.rows));
    return parts * shape.tokens * pitch_of_partials(shape, rows) * 4;
}

int pad(int bytes) {
    return divide_up(bytes, 128) * 128;
}

/// Floats between two rows of sums.
int padded_pitch(const Needs &needs) {
    return divide_up(needs.pitch, 8) * 8 + 4;
}

int slots_of(const Plan &plan) {
    return std::max(plan.shape->tokens, plan.cluster);
}

int limit_of(const Workload &work) {
    return work.clusters ? shared_limit_hopper : shared_limit;
}

/// The largest tile not above `tokens` whose sums fit.
template <std::size_t N>
const TileShape *fitting(const std::array<TileShape, N> &shapes, int tokens, const Workload &work,
                         const Needs &needs) {
    const int limit = limit_of(work);
    for (;; tokens /= 2) {
        const TileShape *shape = pick_shape(shapes, tokens);
        const Plan plan{shape, shape->tokens, largest_cluster};
        if (tokens <= 8 || shared_bytes(plan, needs, work) <= limit) {
            return shape;
        }
    }
}

/// Measured (tests/benchmarks/evidence/sweep_h100.json): clusters of four and more do not fill a
/// GPU, whose groups of multiprocessors they do not divide; half of it is the safe share.
int gate_cluster(const Workload &work, int tile) {
    const int tiles = divide_up(work.tokens, tile);
    const int most = work.rows > 64 ? largest_cluster : 8;
    int cluster = 1;
    while (work.clusters && cluster < most && cluster * 2 * unit * 2 <= work.hidden &&
           tiles * cluster * 2 <= work.multiprocessors / (cluster >= 2 ? 2 : 1)) {
        cluster *= 2;
    }
    return cluster;
}

int gate_tile(const Workload &work) {
    return work.tokens <= 64 ? 8 : work.tokens <= 16 * work.multiprocessors ? 16 : 32;
}

void check_cluster(int cluster, const Workload &work) {
    if (!std::has_single_bit(static_cast<unsigned>(cluster)) ||
        cluster > (work.clusters ? largest_cluster : 1)) {
        throw UserError("cuda plan", "a cluster of 1, 2, 4, 8 or 16 blocks on a GPU that has them",
                        std::to_string(cluster));
    }
}

} // namespace

int lane_width(int experts) {
    return std::max(2,
                    static_cast<int>(std::bit_ceil(static_cast<unsigned>(divide_up(experts, 32)))));
}

int shared_bytes(const Plan &plan, const Needs &needs, const Workload &work) {
    const int slots = slots_of(plan);
    return pad(partial_bytes(*plan.shape, work.rows)) + pad(slots * padded_pitch(needs) * 4) +
           needs.scratch_bytes;
}

Plan plan_gate(const Workload &work, int dtype, const Needs &needs, const Plan &wanted) {
    Plan plan = wanted;
    const int tile = wanted.tile_tokens != 0 ? wanted.tile_tokens : gate_tile(work);
    plan.shape = dtype == dtype_bf16  ? fitting(gate_bf16, tile, work, needs)
                 : dtype == dtype_f16 ? fitting(gate_f16, tile, work, needs)
                                      : fitting(gate_f32, tile, work, needs);
    plan.tile_tokens = plan.shape->tokens;
    plan.cluster = wanted.cluster != 0 ? wanted.cluster : gate_cluster(work, plan.tile_tokens);
    check_cluster(plan.cluster, work);
    while (plan.cluster > 1 && shared_bytes(plan, needs, work) > limit_of(work)) {
        plan.cluster /= 2; // a tile of 8 tokens takes as many rows of sums as blocks
    }
    if (shared_bytes(plan, needs, work) > limit_of(work)) {
        throw UserError("cuda gate", "rows whose sums fit the shared memory of this GPU",
                        std::to_string(work.rows) + " rows of weights",
                        "use the torch path for this layer");
    }
    return plan;
}

Plan plan_route(const Workload &work, bool matrix, bool rows, const Plan &wanted) {
    Plan plan = wanted;
    // The projection has few rows: a block reads its tokens alone, and no cluster need meet.
    const bool many = work.tokens > 128 * work.multiprocessors;
    const int tile = wanted.tile_tokens != 0 ? wanted.tile_tokens : many ? 32 : 8;
    plan.shape = matrix ? pick_shape(rows ? rows_bf16 : lists_bf16, tile)
                        : (rows ? rows_f32 : lists_f32).data();
    plan.tile_tokens = plan.shape->tokens;
    plan.cluster = wanted.cluster != 0 ? wanted.cluster : 1;
    check_cluster(plan.cluster, work);
    return plan;
}

Grid apply(const Plan &plan, const Needs &needs, Product &product) {
    const TileShape &shape = *plan.shape;
    const int rows = product.outputs * product.planes;
    product.groups = divide_up(rows, shape.rows);
    product.row_warps = row_warps(product.groups);
    product.row_shift = log2_of(product.row_warps);
    product.cluster = plan.cluster;
    product.cluster_shift = log2_of(plan.cluster);
    product.tokens_of_block = std::max(1, shape.tokens / plan.cluster);
    product.token_shift = log2_of(product.tokens_of_block);
    product.partial_pitch = pitch_of_partials(shape, rows);
    product.pitch = padded_pitch(needs);
    product.received_offset = pad(partial_bytes(shape, rows));
    product.scratch_offset = product.received_offset + pad(slots_of(plan) * product.pitch * 4);
    const int tiles = divide_up(product.tokens, shape.tokens);
    return {static_cast<std::uint32_t>(tiles), static_cast<std::uint32_t>(plan.cluster),
            static_cast<std::uint32_t>(product.scratch_offset + needs.scratch_bytes)};
}

} // namespace spectral::cuda
