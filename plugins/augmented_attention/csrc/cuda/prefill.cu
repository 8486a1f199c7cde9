// Chooses the prefill kernels of a call and enqueues them: commit, window, features, attention.
#include "prefill.h"

#include <algorithm>

#include "enqueue.cuh"
#include "prefill_attend.cuh"
#include "prefill_commit.cuh"

namespace lineahead::cuda {

namespace {

constexpr bool kChosen = false;  // without being asked for; not before they have run on a GPU
constexpr int kMostNodes = 64;   // of one call of the other kernels

// visit(map, dim) with the preset of the call as types; the answer for other calls is `none`.
template <typename Result, typename Visit>
Result with_preset(const Call& call, Result none, Visit visit) {
  if (FixedPreset<kHedgehog, 64>::matches(call)) return visit(FixedPreset<kHedgehog, 64>{});
  if (FixedPreset<kHedgehog, 128>::matches(call)) return visit(FixedPreset<kHedgehog, 128>{});
  if (FixedPreset<kIdentity, 64>::matches(call)) return visit(FixedPreset<kIdentity, 64>{});
  if (FixedPreset<kIdentity, 128>::matches(call)) return visit(FixedPreset<kIdentity, 128>{});
  return none;
}

template <Map kMap, int kDim, typename T>
constexpr int most_bytes() {
  const int attend = AttendMemory<kMap, kDim>::bytes, commit = CommitMemory<kMap, kDim, T>::bytes;
  return attend > commit ? attend : commit;
}

// Bytes of shared memory that a call needs, or 0 when the kernels do not know it.
int needs(const Call& call) {
  const Settings& s = call.settings;
  const bool asked = call.variant == kPrefill || (kChosen && call.variant == kAnyVariant && call.nodes > kMostNodes);
  if (!asked || !call.chain || call.type == kFloat || s.window != kChunk || s.taps > kMostTaps || s.sinks > kMostSinks) return 0;
  return with_preset(call, 0, [&](auto preset) {
    constexpr Map kMap = decltype(preset)::kFeatureMap;
    constexpr int kDim = decltype(preset)::kHeadDim;
    return call.type == kHalf ? most_bytes<kMap, kDim, __half>() : most_bytes<kMap, kDim, __nv_bfloat16>();
  });
}

template <Map kMap, int kDim, typename T>
cudaError_t launch(const Call& call, cudaStream_t stream) {
  const unsigned slices = kDim / kPassColumns, heads = (unsigned)(call.batch * call.shared);
  Layout layout{};
  layout.slice = kPassColumns;
  const auto put = [&](const void* kernel, dim3 grid, int bytes) { return enqueue(kernel, call, layout, grid, bytes, stream); };
  cudaError_t error = put(reinterpret_cast<const void*>(commit_kernel<kMap, kDim, T>), dim3(slices, 1, heads), CommitMemory<kMap, kDim, T>::bytes);
  if (error == cudaSuccess) error = put(reinterpret_cast<const void*>(window_kernel<T>), dim3(slices, 1, heads), 0);
  if constexpr (kMap == kHedgehog)
    if (error == cudaSuccess)
      error = put(reinterpret_cast<const void*>(features_kernel<kDim, T>), dim3(chunk_count(call), call.heads + call.shared, call.batch),
                  FeatureMemory<kDim>::bytes);
  if (error != cudaSuccess) return error;
  return put(reinterpret_cast<const void*>(attend_kernel<kMap, kDim, T>), dim3(slices, call.heads / call.shared, heads), AttendMemory<kMap, kDim>::bytes);
}

}  // namespace

bool serves_prefill(const Call& call, int shared_memory) {
  const int bytes = needs(call);
  return bytes && bytes <= shared_memory;
}

size_t prefill_workspace(const Call& call) {
  if (!needs(call) || call.settings.map != kHedgehog) return 0;
  return (size_t)call.batch * (call.heads + call.shared) * chunk_count(call) * kChunk * call.features * 2;
}

cudaError_t launch_prefill(const Call& call, cudaStream_t stream) {
  return with_preset(call, cudaErrorInvalidValue, [&](auto preset) {
    constexpr Map kMap = decltype(preset)::kFeatureMap;
    constexpr int kDim = decltype(preset)::kHeadDim;
    return call.type == kHalf ? launch<kMap, kDim, __half>(call, stream) : launch<kMap, kDim, __nv_bfloat16>(call, stream);
  });
}

}  // namespace lineahead::cuda
