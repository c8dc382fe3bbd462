// Chooses tile shapes and cluster sizes.
#include "launch_plan.h"

#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "spectral/error.h"

namespace spectral::cuda {
namespace {

constexpr std::array<TileShape, 2> gate_narrow{
    {{"spectral_gate_narrow_8", 8, 64, true}, {"spectral_gate_narrow_64", 64, 64, true}}};
constexpr std::array<TileShape, 3> gate_bf16{{{"spectral_gate_bf16_8", 8, 256, true},
                                              {"spectral_gate_bf16_64", 64, 256, true},
                                              {"spectral_gate_bf16_128", 128, 256, true}}};
constexpr std::array<TileShape, 2> gate_f16{
    {{"spectral_gate_f16_8", 8, 256, true}, {"spectral_gate_f16_64", 64, 256, true}}};
constexpr std::array<TileShape, 1> gate_f32{{{"spectral_gate_f32_32", 32, 256, false}}};
constexpr TileShape rows_bf16{"spectral_rows_bf16", 32, 160, true};
constexpr TileShape rows_f32{"spectral_rows_f32", 32, 160, false};
constexpr TileShape lists_bf16{"spectral_lists_bf16", 32, 160, true};
constexpr TileShape lists_f32{"spectral_lists_f32", 32, 160, false};

inline constexpr int largest_cluster = 16;
inline constexpr int portable_cluster = 8;
/// Shared memory for the ring of a block that has a multiprocessor to itself, or shares it.
inline constexpr int alone_bytes = 200 * 1024;
inline constexpr int crowded_bytes = 96 * 1024;

int divide_up(int a, int b) {
    return (a + b - 1) / b;
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

const TileShape *gate_shape(int dtype, int tokens, bool narrow) {
    return narrow                ? pick_shape(gate_narrow, tokens)
           : dtype == dtype_bf16 ? pick_shape(gate_bf16, tokens)
           : dtype == dtype_f16  ? pick_shape(gate_f16, tokens)
                                 : pick_shape(gate_f32, tokens);
}

/// Largest power of two of hidden splits that keeps the grid within `budget` blocks.
int split_hidden(const Workload &work, int tiles, int splits_rows, int budget) {
    int splits = 1;
    const int chunks = divide_up(work.hidden, chunk);
    while (work.clusters && splits * 2 * splits_rows <= portable_cluster && splits * 2 <= chunks &&
           tiles * splits_rows * splits * 2 <= budget) {
        splits *= 2;
    }
    return splits;
}

Plan complete(Plan plan, const Workload &work, int budget) {
    plan.tile_tokens = plan.shape->tokens;
    if (plan.splits_rows == 0) {
        plan.splits_rows = divide_up(work.rows, plan.shape->rows);
    }
    if (plan.splits_hidden == 0) {
        const int tiles = divide_up(work.tokens, plan.shape->tokens);
        plan.splits_hidden = split_hidden(work, tiles, plan.splits_rows, budget);
    }
    const int cluster = plan.splits_rows * plan.splits_hidden;
    if (cluster > (work.clusters ? largest_cluster : 1) ||
        !std::has_single_bit(static_cast<unsigned>(plan.splits_hidden)) ||
        divide_up(work.rows, plan.splits_rows) > plan.shape->rows) {
        throw UserError("cuda gate", "rows that fit a cluster of this GPU",
                        std::to_string(work.rows) + " rows of weights",
                        "use the torch path for this layer");
    }
    return plan;
}

/// Tokens of a tile: small while the tiles do not fill the GPU.
int tile_for(const Workload &work) {
    if (work.tokens <= 64) {
        return 8;
    }
    return work.rows > 128 && divide_up(work.tokens, 128) >= work.multiprocessors ? 128 : 64;
}

} // namespace

Plan plan_gate(const Workload &work, int dtype, bool narrow, const Plan &wanted) {
    Plan plan = wanted;
    plan.shape = gate_shape(dtype, wanted.tile_tokens != 0 ? wanted.tile_tokens : tile_for(work),
                            narrow && dtype == dtype_bf16 && work.rows <= 64);
    return complete(plan, work, work.multiprocessors);
}

Plan plan_route(const Workload &work, bool matrix, bool rows, const Plan &wanted) {
    Plan plan = wanted;
    plan.shape = rows ? (matrix ? &rows_bf16 : &rows_f32) : (matrix ? &lists_bf16 : &lists_f32);
    // Measured (tests/benchmarks/evidence/sweep_h100.json): one wave of blocks, at most 8 a
    // cluster.
    return complete(plan, work, work.multiprocessors);
}

namespace {

/// Stage width and count: wide stages mean few instructions, but two should fit.
int choose_ring(int rows, bool crowded, Product &product) {
    const int share = divide_up(divide_up(product.hidden, chunk), product.splits_hidden) * chunk;
    const int budget = crowded ? crowded_bytes : alone_bytes;
    for (int columns = 4 * chunk; columns >= chunk; columns /= 2) {
        const int stage = rows * (columns * 2 + 16);
        const int wanted = std::min(divide_up(share, columns), max_stages);
        const int stages = std::min(wanted, budget / stage);
        if (stages >= std::min(wanted, 3) || columns == chunk) {
            product.stage_columns = columns;
            product.stages = std::max(stages, 1);
            return product.stages * stage;
        }
    }
    return 0; // not reached
}

} // namespace

Grid apply(const Plan &plan, int scratch_experts, int multiprocessors, Product &product) {
    const TileShape &shape = *plan.shape;
    const int all = product.outputs * product.planes;
    const int rows = divide_up(divide_up(all, plan.splits_rows), 16) * 16;
    product.rows_of_block = rows;
    product.splits_hidden = plan.splits_hidden;
    product.splits_rows = divide_up(all, rows); // rounding up to 16 may leave a block without rows
    const int stride = divide_up(rows, 32) * 32 + 4; // exchange_stride of kernels/cluster.cuh
    product.exchange_offset = divide_up(shape.tokens * stride * 4, 128) * 128;
    // Row::words of kernels/select.cuh
    const int scratch = scratch_experts == 0 ? 0 : warps * (2 * scratch_experts + max_groups) * 4;
    const int cluster = product.splits_hidden * product.splits_rows;
    product.cluster = cluster;
    product.hidden_shift = std::countr_zero(static_cast<unsigned>(product.splits_hidden));
    product.chunks_of_split = divide_up(divide_up(product.hidden, chunk), product.splits_hidden);
    product.tokens_of_block = divide_up(shape.tokens, cluster);
    product.rows_reciprocal = static_cast<std::uint32_t>(
        ((1ULL << 32) + static_cast<unsigned>(rows) - 1) / static_cast<unsigned>(rows));
    const int tiles = divide_up(product.tokens, shape.tokens);
    const int feed =
        shape.matrix ? choose_ring(shape.tokens + rows, tiles * cluster > multiprocessors, product)
                     : (shape.tokens + rows) * (chunk + 1) * 4;
    const int shared = std::max(feed, product.exchange_offset + scratch);
    return {static_cast<std::uint32_t>(tiles), static_cast<std::uint32_t>(cluster),
            static_cast<std::uint32_t>(shared)};
}

} // namespace spectral::cuda
