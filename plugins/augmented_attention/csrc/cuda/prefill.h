// Long chains of 16-bit models (prefill): the calls that have kernels of their own, prefill_*.cuh, and what these need.
#pragma once

#include <cuda_runtime.h>

#include "layout.h"

namespace lineahead::cuda {

// Which of them a call gets: all for a chain of more than 16 nodes, which the others are slower to read; the commit alone where more than
// 64 rows may be accepted, as after a long chain. kPrefill asks for all, or, without `chain`, for the commit. Only the presets
// softmax-hedgehog and augmented have them, with windows of 64 and heads of 64 or 128.
enum class PrefillPart { kNone, kCommit, kAll };
PrefillPart prefill_part(const Call& call, int shared_memory);

// Bytes of workspace, whatever the device.
size_t prefill_workspace(const Call& call);

cudaError_t launch_prefill(const Call& call, cudaStream_t stream);

// Enqueue the commit; `call` is then what is left to do, with nothing pending.
cudaError_t launch_commit(Call& call, cudaStream_t stream);

}  // namespace lineahead::cuda
