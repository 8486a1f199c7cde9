// Long chains of 16-bit models (prefill): the calls that have kernels of their own, prefill_*.cuh, and what these need.
#pragma once

#include <cuda_runtime.h>

#include "layout.h"

namespace lineahead::cuda {

// Whether they are for such a call on a device of that much shared memory: `chain`, more nodes than one call of the other kernels
// takes, and the presets softmax-hedgehog or augmented with windows of 64 and heads of 64 or 128. kPrefill asks for them with any
// number of nodes.
bool serves_prefill(const Call& call, int shared_memory);

// Bytes of workspace, whatever the device.
size_t prefill_workspace(const Call& call);

cudaError_t launch_prefill(const Call& call, cudaStream_t stream);

}  // namespace lineahead::cuda
