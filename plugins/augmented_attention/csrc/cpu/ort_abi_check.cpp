// Compile-time proof that ort_abi.h agrees with ONNX Runtime's own header, wherever a copy of that is at hand:
//   c++ -std=c++17 -fsyntax-only -I<folder of onnxruntime_c_api.h> ort_abi_check.cpp
// Not part of the library.
#include <onnxruntime_c_api.h>

#include "ort_abi.h"

#define SAME_SLOT(name) \
  static_assert(offsetof(OrtApi, name) == ort_abi::k##name * sizeof(void*), "OrtApi::" #name " is elsewhere")
#define SAME_FIELD(name) \
  static_assert(offsetof(OrtCustomOp, name) == offsetof(ort_abi::CustomOp, name), "OrtCustomOp::" #name " is elsewhere")

static_assert(ORT_API_VERSION >= ort_abi::kApiVersion, "this header is older than the library's minimum");

SAME_SLOT(CreateStatus);
SAME_SLOT(CreateCustomOpDomain);
SAME_SLOT(CustomOpDomain_Add);
SAME_SLOT(AddCustomOpDomain);
SAME_SLOT(GetTensorMutableData);
SAME_SLOT(GetTensorElementType);
SAME_SLOT(GetDimensionsCount);
SAME_SLOT(GetDimensions);
SAME_SLOT(GetTensorTypeAndShape);
SAME_SLOT(KernelInfoGetAttribute_float);
SAME_SLOT(KernelInfoGetAttribute_int64);
SAME_SLOT(KernelInfoGetAttribute_string);
SAME_SLOT(KernelContext_GetInput);
SAME_SLOT(KernelContext_GetOutput);
SAME_SLOT(ReleaseStatus);
SAME_SLOT(ReleaseTensorTypeAndShapeInfo);
SAME_SLOT(KernelContext_ParallelFor);

SAME_FIELD(version);
SAME_FIELD(CreateKernel);
SAME_FIELD(GetName);
SAME_FIELD(GetExecutionProviderType);
SAME_FIELD(GetInputType);
SAME_FIELD(GetInputTypeCount);
SAME_FIELD(GetOutputType);
SAME_FIELD(GetOutputTypeCount);
SAME_FIELD(KernelCompute);
SAME_FIELD(KernelDestroy);
SAME_FIELD(GetInputCharacteristic);
SAME_FIELD(GetOutputCharacteristic);
SAME_FIELD(GetInputMemoryType);
SAME_FIELD(GetVariadicInputMinArity);
SAME_FIELD(GetVariadicInputHomogeneity);
SAME_FIELD(GetVariadicOutputMinArity);
SAME_FIELD(GetVariadicOutputHomogeneity);
SAME_FIELD(CreateKernelV2);
SAME_FIELD(KernelComputeV2);
SAME_FIELD(InferOutputShapeFn);
SAME_FIELD(GetStartVersion);
SAME_FIELD(GetEndVersion);
SAME_FIELD(GetMayInplace);
SAME_FIELD(ReleaseMayInplace);
SAME_FIELD(GetAliasMap);
SAME_FIELD(ReleaseAliasMap);

static_assert(offsetof(OrtApiBase, GetApi) == offsetof(ort_abi::ApiBase, GetApi), "OrtApiBase::GetApi");
static_assert(int{ORT_FAIL} == ort_abi::kFail && int{ORT_INVALID_ARGUMENT} == ort_abi::kInvalidArgument, "OrtErrorCode");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED} == ort_abi::kUndefined, "undefined");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT} == ort_abi::kFloat, "float");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64} == ort_abi::kInt64, "int64");
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL} == ort_abi::kBool, "bool");
static_assert(int{INPUT_OUTPUT_REQUIRED} == ort_abi::kRequired, "characteristic");
static_assert(int{OrtMemTypeDefault} == ort_abi::kMemoryDefault, "memory type");
