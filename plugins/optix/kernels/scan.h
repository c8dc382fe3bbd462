// How the kernel that scans for unanswered tokens is launched.
#pragma once

namespace spectral::optix {

inline constexpr int scan_warps = 8; ///< of a block; a token each

} // namespace spectral::optix
