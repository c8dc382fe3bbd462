// The part of ONNX Runtime's C interface that a custom operator needs, declared by ourselves: no
// header, no link.
//
// OrtApi is a table that only grows, so a slot's number is stable; OrtCustomOp has 26 words.
// Verified with ONNX Runtime 1.31.1 (tests/plugins/test_onnxruntime.py runs it), and every slot
// against the C header of interface 29.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral::ort {

struct Status;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TensorInfo;
struct CustomOp;

/// ONNXTensorElementDataType.
enum class Element : int { undefined = 0, f32 = 1, i32 = 6, f16 = 10, bf16 = 16 };

inline constexpr std::uint32_t api_version =
    17; ///< ONNX Runtime 1.17, for KernelContext_ParallelFor

/// The slots of OrtApi in use.
enum class Slot : std::size_t {
    CreateStatus = 0,
    CreateCustomOpDomain = 26,
    CustomOpDomain_Add = 27,
    AddCustomOpDomain = 28,
    GetTensorMutableData = 51,
    GetTensorElementType = 60,
    GetDimensionsCount = 61,
    GetDimensions = 62,
    GetTensorTypeAndShape = 65,
    KernelInfoGetAttribute_float = 85,
    KernelInfoGetAttribute_int64 = 86,
    KernelInfoGetAttribute_string = 87,
    KernelContext_GetInput = 90,
    KernelContext_GetOutput = 91,
    ReleaseStatus = 93,
    ReleaseTensorTypeAndShapeInfo = 99,
    KernelContext_GetGPUComputeStream = 193,
    KernelContext_ParallelFor = 274,
};

/// OrtApi.
class Api {
  public:
    explicit Api(const void *table) : table_(static_cast<void *const *>(table)) {}

    template <class... Arguments> Status *call(Slot slot, Arguments... arguments) const {
        return reinterpret_cast<Status *(*)(Arguments...)>(entry(slot))(arguments...);
    }
    template <class... Arguments> void release(Slot slot, Arguments... arguments) const {
        reinterpret_cast<void (*)(Arguments...)>(entry(slot))(arguments...);
    }
    /// Throws UserError when a call failed.
    void check(Status *status, const char *what) const;
    [[nodiscard]] Status *failed(const char *message) const {
        return call(Slot::CreateStatus, 1, message);
    }

  private:
    [[nodiscard]] void *entry(Slot slot) const { return table_[static_cast<std::size_t>(slot)]; }
    void *const *table_;
};

/// OrtApiBase.
struct ApiBase {
    const void *(*GetApi)(std::uint32_t version);
    const char *(*GetVersionString)();
};

/// OrtCustomOp; the members we leave null are asked for only by other kinds of operators.
struct CustomOp {
    std::uint32_t version;
    void *(*CreateKernel)(const CustomOp *, const void *api, const KernelInfo *);
    const char *(*GetName)(const CustomOp *);
    const char *(*GetExecutionProviderType)(const CustomOp *);
    Element (*GetInputType)(const CustomOp *, std::size_t);
    std::size_t (*GetInputTypeCount)(const CustomOp *);
    Element (*GetOutputType)(const CustomOp *, std::size_t);
    std::size_t (*GetOutputTypeCount)(const CustomOp *);
    void (*KernelCompute)(void *kernel, KernelContext *);
    void (*KernelDestroy)(void *kernel);
    int (*GetInputCharacteristic)(const CustomOp *, std::size_t);
    int (*GetOutputCharacteristic)(const CustomOp *, std::size_t);
    int (*GetInputMemoryType)(const CustomOp *, std::size_t);
    int (*GetVariadicInputMinArity)(const CustomOp *);
    int (*GetVariadicInputHomogeneity)(const CustomOp *);
    int (*GetVariadicOutputMinArity)(const CustomOp *);
    int (*GetVariadicOutputHomogeneity)(const CustomOp *);
    Status *(*CreateKernelV2)(const CustomOp *, const void *api, const KernelInfo *, void **);
    Status *(*KernelComputeV2)(void *kernel, KernelContext *);
    Status *(*InferOutputShapeFn)(const CustomOp *, void *);
    int (*GetStartVersion)(const CustomOp *);
    int (*GetEndVersion)(const CustomOp *);
    std::size_t (*GetMayInplace)(int **, int **);
    void (*ReleaseMayInplace)(int *, int *);
    std::size_t (*GetAliasMap)(int **, int **);
    void (*ReleaseAliasMap)(int *, int *);
};
static_assert(sizeof(CustomOp) == 26 * sizeof(void *), "layout of OrtCustomOp");

} // namespace spectral::ort
