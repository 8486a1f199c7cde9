// The library's creators, of which TensorRT asks the exported functions of library.cpp.
#pragma once

#include "operator.h"

#ifndef LINEAHEAD_SOURCE_HASH
#define LINEAHEAD_SOURCE_HASH "unknown"
#endif

namespace lineahead::tensorrt {

#if LINEAHEAD_V3
using AnyCreator = nvinfer1::IPluginCreatorInterface;
#else
using AnyCreator = nvinfer1::IPluginCreator;
#endif

AnyCreator* creator();

// Names and types of all fields, without values.
const nvinfer1::PluginFieldCollection* field_names();

}  // namespace lineahead::tensorrt
