// The table of SIMD kernels: plain structs in, plain arrays out, one table per instruction set.
//
// Everything works on blocks of 16 experts (or 16 child boxes) in structure-of-arrays order,
// whatever the instruction set, so that data and results do not depend on it. A kernel source file
// is compiled with its own flags; it may therefore call no inline function of the standard library,
// or the linker could pick the AVX-512 copy of such a function for a machine without it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "spectral/choice.h"

namespace spectral::cpu {

inline constexpr std::size_t lanes = 16;
/// Blocks scored between two selections of a scan: 2048 experts, so that the scores of a chunk stay
/// close to the processor.
inline constexpr std::size_t chunk_blocks = 128;
/// Tokens that a scan scores together, to load every coefficient once for all of them.
inline constexpr std::size_t scan_tokens = 4;
/// Tokens whose searches advance in turns: while one waits for a node from memory, the others
/// compute.
inline constexpr std::size_t search_tokens = 4;

/// The projection, padded with zeros to a multiple of 16 columns.
struct ProjectionView {
    std::size_t hidden;      ///< D
    std::size_t stride;      ///< D rounded up to 16
    std::size_t rows;        ///< R, plus one when the common row is projected too
    std::size_t block;       ///< columns per pass: `rows` of them stay in the L1 cache
    const float *mean;       ///< [stride]
    const float *directions; ///< [rows, stride]
};

/// The gate's rows in blocks of 16 experts, zeros where there are fewer.
struct GateView {
    std::size_t hidden; ///< D
    std::size_t blocks;
    const float *values; ///< [blocks, D, 16]
};

/// Experts in blocks of 16. Row 0 is beta, then the linear coefficients, the choice bias last.
struct BlocksView {
    std::size_t blocks;
    std::size_t rank;           ///< R
    const float *values;        ///< [blocks, R + 2, 16]
    const std::int32_t *ids;    ///< [blocks, 16]
    const std::uint16_t *valid; ///< [blocks], one bit per lane that holds an expert
};

/// A 16-wide tree. Rows of a node: lower [R], upper [R], power [L], beta, choice bias.
struct TreeView {
    std::size_t levels;
    std::size_t colours;
    const float *values;          ///< [nodes, 2R + L + 2, 16]
    const std::int32_t *children; ///< [nodes, 16]: an inner node, or the complement of a leaf block
    const std::uint16_t *valid;   ///< [nodes]
    BlocksView leaves;
    const float *reach; ///< [R], largest |coordinate| of any expert
    float beta_reach;   ///< largest |beta|
    std::size_t budget; ///< nodes and leaf blocks a search may open before a scan is cheaper
};

struct ChoiceView {
    Choice choice;
    bool biased;
};

/// The best experts met so far by one token. `held` may exceed `count` between two prunings.
struct Selection {
    std::size_t count;    ///< C
    std::size_t capacity; ///< of the two arrays: at least C + 16 * chunk_blocks + 128
    std::size_t held;
    float threshold;   ///< a lower bound of the C-th best score; nothing below it is kept
    float *scores;     ///< [capacity + 16]
    std::int32_t *ids; ///< [capacity + 16]
};

/// Scratch memory of one search.
struct Workspace {
    float *bounds;          ///< [16 * nodes + 32], the queue of a search, unordered
    std::int32_t *children; ///< [16 * nodes + 32]
    float *floats;          ///< [R + L]
    std::uint32_t *edges;   ///< [R]
};

struct SearchCount {
    std::uint64_t nodes;
    std::uint64_t leaves;
};

struct Kernels {
    const char *name;
    /// points [tokens, rows] = (hidden [tokens, D] - mean) x directions^T; scratch [tokens, rows,
    /// 16].
    void (*project)(const ProjectionView &, const float *hidden, std::size_t tokens, float *scratch,
                    float *points);
    /// logits [tokens, 16 * blocks] (`stride` floats apart) = hidden [tokens, D] x gate^T.
    void (*multiply)(const GateView &, const float *hidden, std::size_t tokens, float *logits,
                     std::size_t stride);
    /// scores [tokens, 16 * blocks] of up to scan_tokens points (`stride` floats apart), no choice
    /// rule.
    void (*score)(const BlocksView &, std::size_t first, std::size_t blocks, const float *points,
                  std::size_t stride, std::size_t tokens, float *scores);
    /// Scans all blocks for up to scan_tokens points; buffer [scan_tokens, 16 * chunk_blocks].
    void (*scan)(const BlocksView &, ChoiceView, const float *points, std::size_t stride,
                 std::size_t tokens, float *buffer, Selection *selections);
    /// Best-first searches for up to search_tokens points (`stride` floats apart). `found` says
    /// which of them ended within the budget and inside float32's range.
    void (*search)(const TreeView &, ChoiceView, const float *points, std::size_t stride,
                   std::size_t tokens, const Workspace *, Selection *, SearchCount &, bool *found);
    /// Sorts the held entries (descending, ties by smaller id, NaN last) and keeps the best
    /// `count`.
    void (*finish)(Selection &);
};

/// Slow path of finish() for many held entries; compiled for the base instruction set.
void sort_and_cut(Selection &selection);

const Kernels &kernels_portable();
#if defined(SPECTRAL_X86_KERNELS)
const Kernels &kernels_avx2();
const Kernels &kernels_avx512();
#endif

} // namespace spectral::cpu
