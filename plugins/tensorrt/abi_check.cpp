// Compiled only where NVIDIA's headers are given: our declarations have their sizes, offsets and
// values.
#include <cstddef>

#include <NvInferRuntime.h>

#include "trt_abi.h"

namespace ours = spectral::trt;
namespace theirs = nvinfer1;

#define SAME_SIZE(mine, its) static_assert(sizeof(ours::mine) == sizeof(theirs::its), #mine)
#define SAME_VALUE(mine, its)                                                                      \
    static_assert(static_cast<int>(ours::mine) == static_cast<int>(theirs::its), #mine)

SAME_SIZE(Dims, Dims);
SAME_SIZE(TensorDesc, PluginTensorDesc);
SAME_SIZE(DynamicDesc, DynamicPluginTensorDesc);
SAME_SIZE(Field, PluginField);
SAME_SIZE(Fields, PluginFieldCollection);
SAME_SIZE(DimsExprs, DimsExprs);
SAME_SIZE(InterfaceInfo, InterfaceInfo);
SAME_SIZE(PluginV3, IPluginV3);
SAME_SIZE(PluginCore, v_1_0::IPluginV3OneCore);
SAME_SIZE(PluginBuild, v_2_0::IPluginV3OneBuild);
SAME_SIZE(PluginRuntime, v_1_0::IPluginV3OneRuntime);
SAME_SIZE(PluginCreator, v_1_0::IPluginCreatorV3One);
static_assert(offsetof(ours::TensorDesc, scale) == offsetof(theirs::PluginTensorDesc, scale));
static_assert(offsetof(ours::Field, length) == offsetof(theirs::PluginField, length));
SAME_VALUE(Type::f32, DataType::kFLOAT);
SAME_VALUE(Type::f16, DataType::kHALF);
SAME_VALUE(Type::i32, DataType::kINT32);
SAME_VALUE(Type::bf16, DataType::kBF16);
SAME_VALUE(FieldType::f32, PluginFieldType::kFLOAT32);
SAME_VALUE(FieldType::i32, PluginFieldType::kINT32);
SAME_VALUE(FieldType::text, PluginFieldType::kCHAR);
SAME_VALUE(FieldType::blob, PluginFieldType::kUNKNOWN);
SAME_VALUE(Capability::core, PluginCapabilityType::kCORE);
SAME_VALUE(Capability::build, PluginCapabilityType::kBUILD);
SAME_VALUE(Capability::runtime, PluginCapabilityType::kRUNTIME);
SAME_VALUE(Phase::build, TensorRTPhase::kBUILD);
SAME_VALUE(Phase::runtime, TensorRTPhase::kRUNTIME);
