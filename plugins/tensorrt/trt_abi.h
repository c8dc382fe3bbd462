// TensorRT's V3 plugin interface, declared by ourselves: one binary for 10.x and 11.x, no header,
// no link.
//
// Itanium C++ ABI: the order of declarations is the order of the vtable. Verified against the lean
// runtimes 10.16 and 11.4 (tests/plugins/test_tensorrt_plugin.py). abi_check.cpp compares it with
// NVIDIA's headers where their path is given (SPECTRAL_NVINFER_INCLUDE).
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::trt {

struct Dims {
    std::int32_t count;
    std::int64_t lengths[8];
};

struct InterfaceInfo {
    const char *kind;
    std::int32_t major, minor;
};

enum class Language : std::int32_t { cpp = 0 };
enum class Type : std::int32_t {
    f32 = 0,
    f16 = 1,
    i8 = 2,
    i32 = 3,
    boolean = 4,
    bf16 = 7,
    i64 = 8
};
enum class Format : std::int32_t { linear = 0 };
enum class FieldType : std::int32_t {
    f16 = 0,
    f32 = 1,
    f64 = 2,
    i8 = 3,
    i16 = 4,
    i32 = 5,
    text = 6,
    blob = 8
};
enum class Capability : std::int32_t { core = 0, build = 1, runtime = 2 };
enum class Phase : std::int32_t { build = 0, runtime = 1 };

struct TensorDesc {
    Dims dims;
    Type type;
    Format format;
    float scale;
};

struct DynamicDesc {
    TensorDesc desc;
    Dims least, most, usual;
};

struct Field {
    const char *name;
    const void *data;
    FieldType type;
    std::int32_t length;
};

struct Fields {
    std::int32_t count;
    const Field *fields;
};

struct Versioned {
    virtual Language getAPILanguage() const noexcept { return Language::cpp; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~Versioned() noexcept = default;
};

struct CapabilityBase : Versioned {};

/// Opaque: we only pass on what we are given.
struct DimensionExpr;
struct DimensionRoot {
    virtual ~DimensionRoot() noexcept = default;
};
struct VExprBuilder : DimensionRoot {
    virtual const DimensionExpr *constant(std::int64_t value) = 0;
    virtual const DimensionExpr *operation(std::int32_t, const DimensionExpr &,
                                           const DimensionExpr &) = 0;
    virtual const DimensionExpr *declareSizeTensor(std::int32_t, const DimensionExpr &,
                                                   const DimensionExpr &) = 0;
};
struct ExprBuilder {
    virtual ~ExprBuilder() = default;
    VExprBuilder *implementation;
};
struct DimsExprs {
    std::int32_t count;
    const DimensionExpr *lengths[8];
};

struct PluginV3 : Versioned {
    virtual CapabilityBase *getCapabilityInterface(Capability type) noexcept = 0;
    virtual PluginV3 *clone() noexcept = 0;
};

struct PluginCore : CapabilityBase {
    virtual const char *getPluginName() const noexcept = 0;
    virtual const char *getPluginVersion() const noexcept = 0;
    virtual const char *getPluginNamespace() const noexcept = 0;
};

/// IPluginV3OneBuildV2: the Python bindings ask every build capability for getAliasedInput.
struct PluginBuild : CapabilityBase {
    virtual std::int32_t configurePlugin(const DynamicDesc *in, std::int32_t inputs,
                                         const DynamicDesc *out, std::int32_t outputs) noexcept = 0;
    virtual std::int32_t getOutputDataTypes(Type *out, std::int32_t outputs, const Type *in,
                                            std::int32_t inputs) const noexcept = 0;
    virtual std::int32_t getOutputShapes(const DimsExprs *in, std::int32_t inputs,
                                         const DimsExprs *shapes, std::int32_t shape_inputs,
                                         DimsExprs *out, std::int32_t outputs,
                                         ExprBuilder &builder) noexcept = 0;
    virtual bool supportsFormatCombination(std::int32_t position, const DynamicDesc *tensors,
                                           std::int32_t inputs, std::int32_t outputs) noexcept = 0;
    virtual std::int32_t getNbOutputs() const noexcept = 0;
    virtual std::size_t getWorkspaceSize(const DynamicDesc *in, std::int32_t inputs,
                                         const DynamicDesc *out,
                                         std::int32_t outputs) const noexcept = 0;
    virtual std::int32_t getValidTactics(std::int32_t *tactics, std::int32_t count) noexcept = 0;
    virtual std::int32_t getNbTactics() noexcept = 0;
    virtual const char *getTimingCacheID() noexcept = 0;
    virtual std::int32_t getFormatCombinationLimit() noexcept = 0;
    virtual const char *getMetadataString() noexcept = 0;
    virtual std::int32_t getAliasedInput(std::int32_t output) noexcept = 0;
};

struct PluginRuntime : CapabilityBase {
    virtual std::int32_t setTactic(std::int32_t tactic) noexcept = 0;
    virtual std::int32_t onShapeChange(const TensorDesc *in, std::int32_t inputs,
                                       const TensorDesc *out, std::int32_t outputs) noexcept = 0;
    virtual std::int32_t enqueue(const TensorDesc *in, const TensorDesc *out,
                                 const void *const *inputs, void *const *outputs, void *workspace,
                                 void *stream) noexcept = 0;
    virtual PluginV3 *attachToContext(void *resources) noexcept = 0;
    virtual const Fields *getFieldsToSerialize() noexcept = 0;
};

struct CreatorBase : Versioned {};
struct PluginCreator : CreatorBase {
    virtual PluginV3 *createPlugin(const char *name, const Fields *fields,
                                   Phase phase) noexcept = 0;
    virtual const Fields *getFieldNames() noexcept = 0;
    virtual const char *getPluginName() const noexcept = 0;
    virtual const char *getPluginVersion() const noexcept = 0;
    virtual const char *getPluginNamespace() const noexcept = 0;
};

static_assert(sizeof(Dims) == 72 && sizeof(TensorDesc) == 88 && sizeof(DynamicDesc) == 304 &&
                  sizeof(Field) == 24 && sizeof(Fields) == 16 && sizeof(DimsExprs) == 72,
              "layouts of NvInferRuntime");

} // namespace spectral::trt
