// What the host hands to the kernels: plain structs, passed by value, the same on both sides.
#pragma once

#include <cstdint>

namespace spectral::cuda {

inline constexpr int warps = 8;      ///< of every block
inline constexpr int unit = 32;      ///< columns of the hidden state that a warp multiplies at once
inline constexpr int branching = 32; ///< children of a tree node, experts of a block
inline constexpr int max_row = 1024; ///< experts that one warp can hold in registers
inline constexpr int max_list = 32;  ///< candidates of a scan or search: one a lane
inline constexpr int max_rank = 44;  ///< 3 * 4 levels + 32 colours
inline constexpr int max_roots = 4;  ///< nodes of 32 children that together are the root of a tree
inline constexpr int max_groups = 32; ///< of a group-limited rule: one a lane

inline constexpr int max_chunks = 512;      ///< of a scan
inline constexpr int scan_bytes = 37'504;   ///< of shared memory, checked in kernels/route.cu
inline constexpr int walk_bytes = 6656 * 8; ///< the same of a tree walk by eight warps

enum DtypeCode : std::int32_t { dtype_f32 = 0, dtype_f16 = 1, dtype_bf16 = 2 };
enum ScoreCode : std::int32_t { score_softmax, score_sigmoid, score_sqrtsoftplus, score_logits };
enum WeightCode : std::int32_t { weight_score, weight_softmax, weight_sigmoid };

/// x [tokens, hidden] times weight [planes * outputs, hidden] transposed. A cluster of blocks has a
/// tile of tokens and splits the hidden columns; within a block the warps split the rows of the
/// weight and what is left of the columns. Planes are summands of a float32 weight.
struct Product {
    const void *x;
    const void *weight;
    std::int64_t stride; ///< elements between two tokens of x
    std::int32_t tokens, hidden;
    std::int32_t outputs, planes;
    std::int32_t groups;                 ///< of rows, each one warp's
    std::int32_t row_warps, row_shift;   ///< warps side by side along the rows: 1 << row_shift
    std::int32_t cluster, cluster_shift; ///< blocks that split the columns: 1 << cluster_shift
    std::int32_t tokens_of_block,
        token_shift;            ///< of a tile that each block of the cluster finishes
    std::int32_t partial_pitch; ///< floats between two tokens of partial sums: 8 modulo
                                ///< 32, so that the stores of fragments meet no bank twice
    std::int32_t pitch;         ///< floats between two received rows of sums
    std::int32_t x_dtype;
    std::int32_t received_offset, scratch_offset; ///< bytes of shared memory
};

/// gate.GateRule with its flags as numbers.
struct Rule {
    std::int32_t experts, top_k;
    std::int32_t score, weight;
    std::int32_t groups, groups_kept;
    std::int32_t group_max;  ///< best expert of a group instead of the sum of the best two
    std::int32_t group_zero; ///< other groups get a choice score of zero instead of -inf
    std::int32_t normalise;
    std::int32_t round_dtype; ///< logits are rounded to this dtype, as the family's gate does
    float normalise_eps, normalise_min, scale;
    const float *choice_bias; ///< [E] or null
};

/// Where the result goes; null pointers are skipped.
struct Output {
    void *ids;     ///< [tokens, K] int32, or int64 if `wide_ids`
    void *weights; ///< [tokens, K] of `weights_dtype`
    void *logits;  ///< [tokens, E] of `logits_dtype`
    float *scores; ///< [tokens, C] choice scores, candidate kernels only
    std::int32_t wide_ids, weights_dtype, logits_dtype;
    std::int32_t count; ///< C of the candidate kernels
};

/// The geometry beside its projection, which is the weight of the product.
struct Space {
    const float *offset;     ///< [R + common], projection of the mean
    const float *blocks;     ///< [blocks, R + 2, 32]: beta, choice bias, linear coefficients
    const std::int32_t *ids; ///< [blocks, 32], -1 where there is no expert
    std::int32_t experts, rank, levels, common; ///< common: one more projected row, for all experts
    std::int32_t block_count;
    std::int32_t biased; ///< the blocks hold a choice bias
};

/// A 32-wide tree over the blocks. Rows of a node: lower [R], upper [R], power [L], beta, bias;
/// then one expert of each child, with the rows of a block.
struct Tree {
    const float *values;          ///< [nodes, 3R + L + 4, 32]
    const std::int32_t *children; ///< [nodes, 32]: inner node, ~block, or none
    const float *reach;           ///< [R + 1], largest |coordinate|, then largest |beta|
    std::int32_t roots;           ///< the first nodes, at which every walk begins
};

inline constexpr std::int32_t no_child = 0x7FFFFFFF;

/// Exact logits of candidates: the gate's rows, gathered.
struct Rerank {
    const void *gate;  ///< [E, hidden] or null
    const float *bias; ///< [E] or null
    const float
        *spread; ///< [E] or null: added for the order of candidates, half its square after it
    std::int32_t gate_dtype;
    std::int32_t candidates; ///< C
};

struct GateArguments {
    Product product;
    Rule rule;
    Output output;
    const float *bias; ///< [E] or null, added to the logits
};

struct RouteArguments {
    Product product;
    Rule rule;
    Output output;
    Space space;
    Tree tree;
    Rerank rerank;
    std::int32_t search;      ///< walk the tree instead of scanning the blocks
    std::int32_t chunk_shift; ///< of a scan: 1 << chunk_shift blocks keep their largest score
};

} // namespace spectral::cuda
