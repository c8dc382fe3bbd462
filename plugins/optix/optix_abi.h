// OptiX's host interface as we declare it: the parts that ABI versions 84 to 105 share, and where
// they differ.
//
// No header of the SDK is included (abi_check.cpp compares with it where a path is given). 118
// (OptiX 9.1) moves slots and structures; drivers keep the older versions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::optix::abi {

using Context = void *;
using Module = void *;
using ProgramGroup = void *;
using Pipeline = void *;
using Traversable = std::uint64_t;
using Address = std::uint64_t;
using Result = int;
using Stream = void *;
using Log = void (*)(unsigned level, const char *tag, const char *message, void *data);

struct ContextOptions {
    Log log;
    void *log_data;
    int log_level;
    int validation;
};

struct ModuleOptions {
    int max_registers;
    int optimisation;
    int debug;
    const void *bound_values;
    unsigned bound_count;
    unsigned payload_types;
    const void *payloads;
};

/// 40 bytes before ABI 105, which has `clusters`; a longer structure does no harm.
struct PipelineOptions {
    int motion_blur;
    unsigned graph_flags;
    int payload_values;
    int attribute_values;
    unsigned exceptions;
    const char *params_name;
    unsigned primitive_types;
    int micromaps;
    int clusters;
    int padding;
};

struct LinkOptions {
    unsigned max_trace_depth;
};

struct Program {
    Module module_;
    const char *entry;
};

struct HitPrograms {
    Program closest, any, intersection;
};

struct GroupDescription {
    int kind;
    unsigned flags;
    union {
        Program single;
        HitPrograms hit;
    };
};

struct GroupOptions {
    const void *payload;
};

struct BindingTable {
    Address raygen, exception, miss;
    unsigned miss_stride, miss_count;
    Address hit;
    unsigned hit_stride, hit_count;
    Address callable;
    unsigned callable_stride, callable_count;
};

struct BuildOptions {
    unsigned flags;
    int operation;
    std::uint16_t motion_keys, motion_flags;
    float motion_begin, motion_end;
};

struct BoxInput {
    const Address *boxes;
    unsigned count, stride;
    const unsigned *flags;
    unsigned records;
    Address record_index;
    unsigned record_index_size, record_index_stride;
    unsigned index_offset;
};

struct BuildInput {
    int type;
    union {
        BoxInput boxes;
        char padding[1024];
    };
};

struct BuildSizes {
    std::size_t output, scratch, update_scratch;
};

struct EmitProperty {
    Address result;
    int type;
};

inline constexpr std::size_t record_header = 32;
inline constexpr std::size_t record_alignment = 16;
inline constexpr std::size_t structure_alignment = 128;

inline constexpr unsigned allow_single_structure = 1;
inline constexpr unsigned custom_primitives = 1;
inline constexpr int raygen_group = 0x2421;
inline constexpr int miss_group = 0x2422;
inline constexpr int hit_group = 0x2424;
inline constexpr int boxes_input = 0x2142;
inline constexpr int operation_build = 0x2161;
inline constexpr unsigned allow_compaction = 1U << 1;
inline constexpr unsigned prefer_fast_trace = 1U << 2;
inline constexpr int emit_compacted_size = 0x2181;
inline constexpr int property_rtcore_version = 0x2005;

/// Slots of the function table that every accepted version shares.
enum Slot : unsigned {
    slot_error_name = 0,
    slot_context_create = 2,
    slot_context_property = 4,
    slot_cache_enabled = 6,
    slot_module_create = 12,
    slot_group_create = 18,
    slot_pipeline_create = 21,
    slot_build_sizes = 24,
    slot_build = 25,
    slot_compact = 29,
};

/// One accepted version: what is asked for, and where its two moving functions are.
struct Version {
    int id;
    unsigned slots, pack_header, launch;
};
inline constexpr Version versions[] = {
    {105, 52, 40, 41}, {93, 50, 38, 39}, {87, 48, 38, 39}, {84, 48, 38, 39}};

using QueryTable = Result(int id, unsigned options, const int *keys, const void **values,
                          void *table, std::size_t bytes);

static_assert(sizeof(PipelineOptions) == 48 && sizeof(ModuleOptions) == 40 &&
                  sizeof(GroupDescription) == 56 && sizeof(BindingTable) == 64 &&
                  sizeof(BuildOptions) == 20 && sizeof(BuildInput) == 1032 &&
                  sizeof(BoxInput) == 56 && sizeof(EmitProperty) == 16,
              "layouts of optix_types.h");

} // namespace spectral::optix::abi
