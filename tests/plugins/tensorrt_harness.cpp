// Calls the plugin's virtual functions as TensorRT does, for Python tests: compiled by them, loaded by ctypes.
#include <dlfcn.h>

#include <cstring>

#include "trt_abi.h"

using namespace spectral::trt;

namespace {

constexpr int inputs = 12;
constexpr int outputs = 2;

template <class Part> Part *part(PluginV3 *plugin, Capability type) {
    return static_cast<Part *>(plugin->getCapabilityInterface(type));
}

/// The shapes that matter: hidden [T, D]; everything else is left at one element.
void describe(TensorDesc *tensors, const int *types, std::int64_t tokens, std::int64_t width) {
    for (int i = 0; i < inputs + outputs; ++i) {
        tensors[i] = {};
        tensors[i].dims = {1, {1}};
        tensors[i].type = static_cast<Type>(types[i]);
        tensors[i].scale = -1.0F;
    }
    tensors[0].dims = {2, {tokens, width}};
}

void describe(DynamicDesc *tensors, const int *types, std::int64_t tokens, std::int64_t width) {
    TensorDesc plain[inputs + outputs];
    describe(plain, types, tokens, width);
    for (int i = 0; i < inputs + outputs; ++i) {
        tensors[i] = {plain[i], plain[i].dims, plain[i].dims, plain[i].dims};
    }
}

struct Expr final : VExprBuilder {
    std::int64_t value = 0;
    const DimensionExpr *constant(std::int64_t v) override {
        value = v;
        return reinterpret_cast<const DimensionExpr *>(&value);
    }
    const DimensionExpr *operation(std::int32_t, const DimensionExpr &, const DimensionExpr &) override {
        return nullptr;
    }
    const DimensionExpr *declareSizeTensor(std::int32_t, const DimensionExpr &, const DimensionExpr &) override {
        return nullptr;
    }
};

} // namespace

extern "C" {

PluginCreator *open_creator(const char *library) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        return nullptr;
    }
    using Creators = CreatorBase *const *(*)(std::int32_t &);
    const auto creators = reinterpret_cast<Creators>(dlsym(handle, "getCreators"));
    std::int32_t count = 0;
    CreatorBase *const *all = creators(count);
    return count == 1 ? static_cast<PluginCreator *>(all[0]) : nullptr;
}
const char *creator_kind(PluginCreator *creator) { return creator->getInterfaceInfo().kind; }
const Fields *field_names(PluginCreator *creator) { return creator->getFieldNames(); }
PluginV3 *create(PluginCreator *creator, const Fields *fields, int phase) {
    return creator->createPlugin("layer", fields, static_cast<Phase>(phase));
}
PluginV3 *clone_of(PluginV3 *plugin) { return plugin->clone(); }
PluginV3 *attach_to(PluginV3 *plugin) {
    return part<PluginRuntime>(plugin, Capability::runtime)->attachToContext(nullptr);
}
void destroy(PluginV3 *plugin) { delete plugin; }
const char *kind_of(PluginV3 *plugin, int capability) {
    return plugin->getCapabilityInterface(static_cast<Capability>(capability))->getInterfaceInfo().kind;
}
const char *name_of(PluginV3 *plugin, int which) {
    auto *core = part<PluginCore>(plugin, Capability::core);
    return which == 0   ? core->getPluginName()
           : which == 1 ? core->getPluginVersion()
                        : core->getPluginNamespace();
}
const Fields *serialised(PluginV3 *plugin) {
    return part<PluginRuntime>(plugin, Capability::runtime)->getFieldsToSerialize();
}
const char *timing_id(PluginV3 *plugin) {
    return part<PluginBuild>(plugin, Capability::build)->getTimingCacheID();
}
int configure(PluginV3 *plugin, const int *types, std::int64_t tokens, std::int64_t width) {
    DynamicDesc tensors[inputs + outputs];
    describe(tensors, types, tokens, width);
    return part<PluginBuild>(plugin, Capability::build)
        ->configurePlugin(tensors, inputs, tensors + inputs, outputs);
}
int output_types(PluginV3 *plugin, int *types) {
    return part<PluginBuild>(plugin, Capability::build)
        ->getOutputDataTypes(reinterpret_cast<Type *>(types + inputs), outputs, reinterpret_cast<Type *>(types),
                             inputs);
}
/// The constant second length of both outputs, or -1; the first length must be the input's own expression.
std::int64_t output_width(PluginV3 *plugin) {
    std::int64_t tokens = 0;
    DimsExprs in[inputs] = {};
    DimsExprs out[outputs] = {};
    in[0].count = 2;
    in[0].lengths[0] = reinterpret_cast<const DimensionExpr *>(&tokens);
    Expr expressions;
    ExprBuilder builder{};
    builder.implementation = &expressions;
    auto *build = part<PluginBuild>(plugin, Capability::build);
    const int failed = build->getOutputShapes(in, inputs, nullptr, 0, out, outputs, builder);
    const bool same = out[0].count == 2 && out[0].lengths[0] == in[0].lengths[0] &&
                      out[1].lengths[0] == in[0].lengths[0];
    return failed == 0 && same ? expressions.value : -1;
}
int supports(PluginV3 *plugin, int position, const int *types) {
    DynamicDesc tensors[inputs + outputs];
    describe(tensors, types, 4, 4);
    return part<PluginBuild>(plugin, Capability::build)
        ->supportsFormatCombination(position, tensors, inputs, outputs);
}
std::size_t workspace_bytes(PluginV3 *plugin, const int *types, std::int64_t tokens, std::int64_t width) {
    DynamicDesc tensors[inputs + outputs];
    describe(tensors, types, tokens, width);
    return part<PluginBuild>(plugin, Capability::build)
        ->getWorkspaceSize(tensors, inputs, tensors + inputs, outputs);
}
/// Tactics as decimal digits, or -1.
int tactics(PluginV3 *plugin) {
    std::int32_t found[8] = {};
    auto *build = part<PluginBuild>(plugin, Capability::build);
    const std::int32_t count = build->getNbTactics();
    if (count > 8 || build->getValidTactics(found, count) != 0 ||
        build->getValidTactics(found, count + 1) == 0) {
        return -1;
    }
    int digits = 0;
    for (std::int32_t i = 0; i < count; ++i) {
        digits = 10 * digits + found[i];
    }
    return digits;
}
int set_tactic(PluginV3 *plugin, int tactic) {
    return part<PluginRuntime>(plugin, Capability::runtime)->setTactic(tactic);
}
int shape_change(PluginV3 *plugin, const int *types, std::int64_t tokens, std::int64_t width) {
    TensorDesc tensors[inputs + outputs];
    describe(tensors, types, tokens, width);
    return part<PluginRuntime>(plugin, Capability::runtime)
        ->onShapeChange(tensors, inputs, tensors + inputs, outputs);
}
int enqueue(PluginV3 *plugin, const int *types, std::int64_t tokens, std::int64_t width, const void *const *in,
            void *const *out, void *workspace, void *stream) {
    TensorDesc tensors[inputs + outputs];
    describe(tensors, types, tokens, width);
    return part<PluginRuntime>(plugin, Capability::runtime)
        ->enqueue(tensors, tensors + inputs, in, out, workspace, stream);
}

} // extern "C"
