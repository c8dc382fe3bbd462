// What the builder splits by: one weighted row per expert, in units of the score.
#pragma once

#include <cstdint>
#include <vector>

#include "spectral/builder.h"

namespace spectral {

/// An extent of a column is the part of a node's bound that splitting this column can take away:
/// 2 |p_r| times a centre, |f_s| times a colour, beta as it is, and the choice bias over the
/// steepest slope of a sigmoid (1/4). Rows move with their experts while the tree is built: every
/// pass is sequential.
struct SplitKeys {
    std::size_t width = 0;   ///< columns, rounded up to 4 with zeros
    std::vector<float> rows; ///< [E, width]
};

SplitKeys make_split_keys(const Geometry &geometry, const BuildConfig &config, Executor &executor);

/// Throws UserError if an array of the geometry holds NaN or infinity.
void check_finite(const Geometry &geometry);

} // namespace spectral
