// libnvoptix at run time: one table of functions for the newest ABI that the driver accepts, or the
// reason.
#pragma once

#include <string>

#include "optix_abi.h"

namespace spectral::optix {

/// The functions used; every member is set once `optix()` has returned it.
struct OptixApi {
    abi::Version version{};
    const char *(*error_name)(abi::Result) = nullptr;
    abi::Result (*context_create)(void *, const abi::ContextOptions *, abi::Context *) = nullptr;
    abi::Result (*context_property)(abi::Context, int, void *, std::size_t) = nullptr;
    abi::Result (*cache_enabled)(abi::Context, int) = nullptr;
    abi::Result (*module_create)(abi::Context, const abi::ModuleOptions *,
                                 const abi::PipelineOptions *, const char *, std::size_t, char *,
                                 std::size_t *, abi::Module *) = nullptr;
    abi::Result (*group_create)(abi::Context, const abi::GroupDescription *, unsigned,
                                const abi::GroupOptions *, char *, std::size_t *,
                                abi::ProgramGroup *) = nullptr;
    abi::Result (*pipeline_create)(abi::Context, const abi::PipelineOptions *,
                                   const abi::LinkOptions *, const abi::ProgramGroup *, unsigned,
                                   char *, std::size_t *, abi::Pipeline *) = nullptr;
    abi::Result (*build_sizes)(abi::Context, const abi::BuildOptions *, const abi::BuildInput *,
                               unsigned, abi::BuildSizes *) = nullptr;
    abi::Result (*build)(abi::Context, abi::Stream, const abi::BuildOptions *,
                         const abi::BuildInput *, unsigned, abi::Address, std::size_t, abi::Address,
                         std::size_t, abi::Traversable *, const abi::EmitProperty *,
                         unsigned) = nullptr;
    abi::Result (*compact)(abi::Context, abi::Stream, abi::Traversable, abi::Address, std::size_t,
                           abi::Traversable *) = nullptr;
    abi::Result (*pack_header)(abi::ProgramGroup, void *) = nullptr;
    abi::Result (*launch)(abi::Pipeline, abi::Stream, abi::Address, std::size_t,
                          const abi::BindingTable *, unsigned, unsigned, unsigned) = nullptr;
};

/// Why OptiX cannot be used here, or empty. Opens libnvoptix (SPECTRAL_LIBNVOPTIX overrides the
/// path) on the first call; the answer is remembered. Makes no OptiX context.
const std::string &optix_absent();

/// The table. Throws UserError with the reason of optix_absent().
const OptixApi &optix();

/// Throws UserError naming the call when an OptiX call failed; `log` is what the compiler said.
void check_optix(abi::Result result, const char *call, const std::string &log = "");

} // namespace spectral::optix
