// The creator, and the two symbols that TensorRT looks for in a plugin library.
#include <exception>

#include "route_plugin.h"

namespace spectral::trt {
namespace {

class RouteCreator final : public PluginCreator {
  public:
    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN CREATOR_V3ONE", 1, 0};
    }

    PluginV3 *createPlugin(const char *, const Fields *fields, Phase phase) noexcept override {
        try {
            return new RoutePlugin(phase == Phase::build ? NodeAttributes::of_fields(*fields)
                                                         : NodeAttributes::of_serial(*fields));
        } catch (const std::exception &error) {
            message_ = error.what();
            return nullptr;
        }
    }

    const Fields *getFieldNames() noexcept override { return &names_; }
    const char *getPluginName() const noexcept override { return plugin_name; }
    const char *getPluginVersion() const noexcept override { return plugin_version; }
    const char *getPluginNamespace() const noexcept override { return plugin_namespace; }

  private:
    Fields names_{static_cast<std::int32_t>(FieldNames::all().size()), FieldNames::all().data()};
    std::string message_; ///< for a debugger: TensorRT sees only the null pointer
};

} // namespace
} // namespace spectral::trt

#define SPECTRAL_EXPORT extern "C" __attribute__((visibility("default")))

SPECTRAL_EXPORT spectral::trt::CreatorBase *const *getCreators(std::int32_t &count) {
    static spectral::trt::RouteCreator creator;
    static spectral::trt::CreatorBase *const creators[] = {&creator};
    count = 1;
    return creators;
}

// Ignored on purpose: the logger's vtable moved between 10 and 11.
SPECTRAL_EXPORT void setLoggerFinder(void *) {}
