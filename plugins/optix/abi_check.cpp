// Compiled only where OptiX's headers are given: our declarations have their sizes, offsets, values
// and slots.
#include <cstddef>

#include <optix_types.h>

#include <optix_function_table.h>

#include "optix_abi.h"

namespace ours = spectral::optix::abi;

#define SAME_SIZE(mine, its) static_assert(sizeof(ours::mine) == sizeof(its), #mine)
#define SAME_OFFSET(mine, member, its, other)                                                      \
    static_assert(offsetof(ours::mine, member) == offsetof(its, other), #mine "." #member)
#define SAME_VALUE(mine, its) static_assert(static_cast<unsigned>(ours::mine) == (its), #mine)
#define SAME_SLOT(slot, function)                                                                  \
    static_assert((slot) * sizeof(void *) == offsetof(OptixFunctionTable, function), #function)

SAME_SIZE(ContextOptions, OptixDeviceContextOptions);
SAME_SIZE(ModuleOptions, OptixModuleCompileOptions);
SAME_SIZE(LinkOptions, OptixPipelineLinkOptions);
SAME_SIZE(GroupDescription, OptixProgramGroupDesc);
SAME_SIZE(GroupOptions, OptixProgramGroupOptions);
SAME_SIZE(BindingTable, OptixShaderBindingTable);
SAME_SIZE(BuildOptions, OptixAccelBuildOptions);
SAME_SIZE(BoxInput, OptixBuildInputCustomPrimitiveArray);
SAME_SIZE(BuildInput, OptixBuildInput);
SAME_SIZE(BuildSizes, OptixAccelBufferSizes);
SAME_SIZE(EmitProperty, OptixAccelEmitDesc);
// One int more from ABI 105 on; versions before read only what they know.
static_assert(sizeof(ours::PipelineOptions) ==
              sizeof(OptixPipelineCompileOptions) + (OPTIX_ABI_VERSION < 105 ? 8 : 0));

SAME_OFFSET(ContextOptions, log_level, OptixDeviceContextOptions, logCallbackLevel);
SAME_OFFSET(ModuleOptions, bound_values, OptixModuleCompileOptions, boundValues);
SAME_OFFSET(ModuleOptions, payload_types, OptixModuleCompileOptions, numPayloadTypes);
SAME_OFFSET(PipelineOptions, graph_flags, OptixPipelineCompileOptions, traversableGraphFlags);
SAME_OFFSET(PipelineOptions, payload_values, OptixPipelineCompileOptions, numPayloadValues);
SAME_OFFSET(PipelineOptions, attribute_values, OptixPipelineCompileOptions, numAttributeValues);
SAME_OFFSET(PipelineOptions, params_name, OptixPipelineCompileOptions,
            pipelineLaunchParamsVariableName);
SAME_OFFSET(PipelineOptions, primitive_types, OptixPipelineCompileOptions, usesPrimitiveTypeFlags);
SAME_OFFSET(GroupDescription, single, OptixProgramGroupDesc, raygen);
SAME_OFFSET(GroupDescription, hit, OptixProgramGroupDesc, hitgroup);
SAME_OFFSET(HitPrograms, intersection, OptixProgramGroupHitgroup, moduleIS);
SAME_OFFSET(BindingTable, miss, OptixShaderBindingTable, missRecordBase);
SAME_OFFSET(BindingTable, hit, OptixShaderBindingTable, hitgroupRecordBase);
SAME_OFFSET(BindingTable, hit_count, OptixShaderBindingTable, hitgroupRecordCount);
SAME_OFFSET(BuildInput, boxes, OptixBuildInput, customPrimitiveArray);
SAME_OFFSET(BoxInput, count, OptixBuildInputCustomPrimitiveArray, numPrimitives);
SAME_OFFSET(BoxInput, flags, OptixBuildInputCustomPrimitiveArray, flags);
SAME_OFFSET(BoxInput, records, OptixBuildInputCustomPrimitiveArray, numSbtRecords);
SAME_OFFSET(BuildOptions, operation, OptixAccelBuildOptions, operation);
SAME_OFFSET(BuildSizes, scratch, OptixAccelBufferSizes, tempSizeInBytes);
SAME_OFFSET(EmitProperty, type, OptixAccelEmitDesc, type);

SAME_VALUE(record_header, OPTIX_SBT_RECORD_HEADER_SIZE);
SAME_VALUE(record_alignment, OPTIX_SBT_RECORD_ALIGNMENT);
SAME_VALUE(structure_alignment, OPTIX_ACCEL_BUFFER_BYTE_ALIGNMENT);
SAME_VALUE(allow_single_structure, OPTIX_TRAVERSABLE_GRAPH_FLAG_ALLOW_SINGLE_GAS);
SAME_VALUE(custom_primitives, OPTIX_PRIMITIVE_TYPE_FLAGS_CUSTOM);
SAME_VALUE(raygen_group, OPTIX_PROGRAM_GROUP_KIND_RAYGEN);
SAME_VALUE(miss_group, OPTIX_PROGRAM_GROUP_KIND_MISS);
SAME_VALUE(hit_group, OPTIX_PROGRAM_GROUP_KIND_HITGROUP);
SAME_VALUE(boxes_input, OPTIX_BUILD_INPUT_TYPE_CUSTOM_PRIMITIVES);
SAME_VALUE(operation_build, OPTIX_BUILD_OPERATION_BUILD);
SAME_VALUE(allow_compaction, OPTIX_BUILD_FLAG_ALLOW_COMPACTION);
SAME_VALUE(prefer_fast_trace, OPTIX_BUILD_FLAG_PREFER_FAST_TRACE);
SAME_VALUE(emit_compacted_size, OPTIX_PROPERTY_TYPE_COMPACTED_SIZE);
SAME_VALUE(property_rtcore_version, OPTIX_DEVICE_PROPERTY_RTCORE_VERSION);

SAME_SLOT(ours::slot_error_name, optixGetErrorName);
SAME_SLOT(ours::slot_context_create, optixDeviceContextCreate);
SAME_SLOT(ours::slot_context_property, optixDeviceContextGetProperty);
SAME_SLOT(ours::slot_cache_enabled, optixDeviceContextSetCacheEnabled);
SAME_SLOT(ours::slot_module_create, optixModuleCreate);
SAME_SLOT(ours::slot_group_create, optixProgramGroupCreate);
SAME_SLOT(ours::slot_pipeline_create, optixPipelineCreate);
SAME_SLOT(ours::slot_build_sizes, optixAccelComputeMemoryUsage);
SAME_SLOT(ours::slot_build, optixAccelBuild);
SAME_SLOT(ours::slot_compact, optixAccelCompact);

constexpr ours::Version version_of_headers() {
    for (const ours::Version &version : ours::versions) {
        if (version.id == OPTIX_ABI_VERSION) {
            return version;
        }
    }
    return {}; // headers of another version: nothing to compare the moving slots with
}
static_assert(version_of_headers().id == OPTIX_ABI_VERSION, "headers of ABI 84, 87, 93 or 105");
static_assert(version_of_headers().slots * sizeof(void *) == sizeof(OptixFunctionTable));
SAME_SLOT(version_of_headers().pack_header, optixSbtRecordPackHeader);
SAME_SLOT(version_of_headers().launch, optixLaunch);
