// The TensorRT plugin spectral::BvhRoute, version 1: one object with the three capabilities of
// IPluginV3.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "ray_candidates.h"
#include "spectral/route.h"
#include "trt_abi.h"

namespace spectral::trt {

inline constexpr const char *plugin_name = "BvhRoute";
inline constexpr const char *plugin_version = "1";
inline constexpr const char *plugin_namespace = "spectral";
inline constexpr std::int32_t serial_format =
    1; ///< moves when an older library could misread an engine

/// Inputs of the node, in order; see spectral_convert.export.routes.INPUTS. Geometry and gate are
/// constants of the network, so they reach enqueue as device pointers and are stored in the engine
/// once.
enum Input : std::int32_t {
    in_hidden,
    in_mean,
    in_projection,
    in_directions,
    in_beta,
    in_spread,
    in_gate_weight,
    in_gate_bias,
    in_choice_bias,
    in_bvh_first,
    in_bvh_count,
    in_bvh_experts,
    input_count
};
inline constexpr std::int32_t output_count = 2;

/// Names of the attributes that TensorRT's parser looks up on the node.
struct FieldNames {
    static const std::vector<Field> &all();
};

/// What a node says: the step, the digest of its arrays, whether weights are float32 whatever the
/// states are.
struct NodeAttributes {
    RouteSpec spec{};
    std::string digest;
    bool float_weights = false;

    /// From the node's attributes (build phase). Throws UserError.
    static NodeAttributes of_fields(const Fields &fields);
    /// From getFieldsToSerialize (runtime phase). Throws UserError, for another format too.
    static NodeAttributes of_serial(const Fields &fields);
};

class RoutePlugin final : public PluginV3 {
  public:
    explicit RoutePlugin(NodeAttributes attributes);

    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
    CapabilityBase *getCapabilityInterface(Capability type) noexcept override;
    PluginV3 *clone() noexcept override;

    /// The last failure of this thread, for whoever debugs: TensorRT sees only status codes.
    static const std::string &last_error();

  private:
    struct CorePart final : PluginCore {
        InterfaceInfo getInterfaceInfo() const noexcept override {
            return {"PLUGIN_V3ONE_CORE", 1, 0};
        }
        const char *getPluginName() const noexcept override { return plugin_name; }
        const char *getPluginVersion() const noexcept override { return plugin_version; }
        const char *getPluginNamespace() const noexcept override { return plugin_namespace; }
    };

    struct BuildPart final : PluginBuild {
        explicit BuildPart(const NodeAttributes &node) : node_(node) {}
        InterfaceInfo getInterfaceInfo() const noexcept override {
            return {"PLUGIN_V3ONE_BUILD", 2, 0};
        }
        std::int32_t configurePlugin(const DynamicDesc *, std::int32_t, const DynamicDesc *,
                                     std::int32_t) noexcept override;
        std::int32_t getOutputDataTypes(Type *, std::int32_t, const Type *,
                                        std::int32_t) const noexcept override;
        std::int32_t getOutputShapes(const DimsExprs *, std::int32_t, const DimsExprs *,
                                     std::int32_t, DimsExprs *, std::int32_t,
                                     ExprBuilder &) noexcept override;
        bool supportsFormatCombination(std::int32_t, const DynamicDesc *, std::int32_t,
                                       std::int32_t) noexcept override;
        std::int32_t getNbOutputs() const noexcept override { return output_count; }
        std::size_t getWorkspaceSize(const DynamicDesc *, std::int32_t, const DynamicDesc *,
                                     std::int32_t) const noexcept override;
        std::int32_t getValidTactics(std::int32_t *, std::int32_t) noexcept override;
        std::int32_t getNbTactics() noexcept override;
        const char *getTimingCacheID() noexcept override { return node_.digest.c_str(); }
        std::int32_t getFormatCombinationLimit() noexcept override { return 3; }
        const char *getMetadataString() noexcept override { return node_.digest.c_str(); }
        std::int32_t getAliasedInput(std::int32_t) noexcept override { return -1; }

      private:
        const NodeAttributes &node_;
    };

    struct RuntimePart final : PluginRuntime {
        explicit RuntimePart(RoutePlugin &owner) : owner_(owner) {}
        InterfaceInfo getInterfaceInfo() const noexcept override {
            return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
        }
        std::int32_t setTactic(std::int32_t) noexcept override;
        std::int32_t onShapeChange(const TensorDesc *, std::int32_t, const TensorDesc *,
                                   std::int32_t) noexcept override;
        std::int32_t enqueue(const TensorDesc *, const TensorDesc *, const void *const *,
                             void *const *, void *, void *) noexcept override;
        PluginV3 *attachToContext(void *) noexcept override;
        const Fields *getFieldsToSerialize() noexcept override;

      private:
        RoutePlugin &owner_;
    };

    [[nodiscard]] RoutePlugin *copied() const;

    NodeAttributes node_;
    std::int32_t tactic_ = cuda_tactic;
    RayCandidates rays_;
    CorePart core_;
    BuildPart build_{node_};
    RuntimePart runtime_{*this};
    // What getFieldsToSerialize points at must outlive the call.
    std::int32_t serial_format_ = serial_format, serial_float_weights_ = 0;
    std::array<Field, 4> serial_{};
    Fields serial_fields_{};
};

} // namespace spectral::trt
