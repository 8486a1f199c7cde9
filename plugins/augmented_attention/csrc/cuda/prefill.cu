// Chooses the prefill kernels of a call and enqueues them: commit, window, features, attention.
#include "prefill.h"

#include <algorithm>

#include "enqueue.cuh"
#include "prefill_attend.cuh"
#include "prefill_commit.cuh"

namespace lineahead::cuda {

namespace {

constexpr int kMostNodes = 16;   // of a chain that the streaming kernel reads sooner
constexpr int kMostRows = 64;    // pending ones that they commit themselves

// visit(map, dim) with the preset of the call as types; the answer for other calls is `none`.
template <typename Result, typename Visit>
Result with_preset(const Call& call, Result none, Visit visit) {
  if (FixedPreset<kHedgehog, 64>::matches(call)) return visit(FixedPreset<kHedgehog, 64>{});
  if (FixedPreset<kHedgehog, 128>::matches(call)) return visit(FixedPreset<kHedgehog, 128>{});
  if (FixedPreset<kIdentity, 64>::matches(call)) return visit(FixedPreset<kIdentity, 64>{});
  if (FixedPreset<kIdentity, 128>::matches(call)) return visit(FixedPreset<kIdentity, 128>{});
  return none;
}

// The part that a call is to get, whatever the device.
PrefillPart wanted_part(const Call& call) {
  const Settings& s = call.settings;
  const bool asked = call.variant == kPrefill, free = call.variant == kAnyVariant;
  if (call.type == kFloat || s.window != kChunk || s.taps > kMostTaps || s.sinks > kMostSinks) return PrefillPart::kNone;
  if (!with_preset(call, false, [](auto) { return true; })) return PrefillPart::kNone;
  if (call.chain && (asked || (free && call.nodes > kMostNodes))) return PrefillPart::kAll;
  return asked || (free && call.pending && call.accepted > kMostRows) ? PrefillPart::kCommit : PrefillPart::kNone;
}

template <Map kMap, int kDim, typename T>
struct Kernels {
  static constexpr unsigned kSlices = kDim / kPassColumns;
  using Commit = CommitMemory<kMap, kDim, T>;
  using Attention = AttendMemory<kMap, kDim>;

  static int bytes(PrefillPart part) { return part == PrefillPart::kAll && Attention::bytes > Commit::bytes ? Attention::bytes : Commit::bytes; }

  template <typename Kernel>
  static cudaError_t put(Kernel* kernel, const Call& call, dim3 grid, int bytes, cudaStream_t stream, int threads = kPrefillThreads) {
    Layout layout{};
    layout.slice = kPassColumns;
    return enqueue(reinterpret_cast<const void*>(kernel), call, layout, grid, bytes, stream, threads);
  }
  template <bool kLengths>
  static cudaError_t commit(const Call& call, cudaStream_t stream) {
    const dim3 grid(kSlices, 1, (unsigned)(call.batch * call.shared));
    const cudaError_t error = put(commit_kernel<kMap, kDim, T>, call, grid, Commit::bytes, stream);
    return error == cudaSuccess ? put(window_kernel<kLengths, T>, call, grid, 0, stream, kThreads) : error;
  }
  static cudaError_t attend(const Call& call, cudaStream_t stream) {
    if constexpr (kMap == kHedgehog) {
      const dim3 grid(chunk_count(call), call.heads + call.shared, call.batch);
      const cudaError_t error = put(features_kernel<kDim, T>, call, grid, FeatureMemory<kDim>::bytes, stream);
      if (error != cudaSuccess) return error;
    }
    const dim3 grid(kSlices, call.heads / call.shared, (unsigned)(call.batch * call.shared));
    return put(attend_kernel<kMap, kDim, T>, call, grid, Attention::bytes, stream);
  }
};

// visit with the kernels of the call.
template <typename Result, typename Visit>
Result with_kernels(const Call& call, Result none, Visit visit) {
  return with_preset(call, none, [&](auto preset) {
    constexpr Map kMap = decltype(preset)::kFeatureMap;
    constexpr int kDim = decltype(preset)::kHeadDim;
    return call.type == kHalf ? visit(Kernels<kMap, kDim, __half>{}) : visit(Kernels<kMap, kDim, __nv_bfloat16>{});
  });
}

}  // namespace

PrefillPart prefill_part(const Call& call, int shared_memory) {
  const PrefillPart part = wanted_part(call);
  if (part == PrefillPart::kNone) return part;
  const bool fits = with_kernels(call, false, [&](auto kernels) { return kernels.bytes(part) <= shared_memory; });
  return fits ? part : PrefillPart::kNone;
}

size_t prefill_workspace(const Call& call) {
  const PrefillPart part = wanted_part(call);
  if (part == PrefillPart::kNone) return 0;
  if (part == PrefillPart::kCommit || call.settings.map != kHedgehog) return (size_t)call.batch * call.index_bytes;
  return (size_t)call.batch * (call.heads + call.shared) * chunk_count(call) * kChunk * call.features * 2;
}

cudaError_t launch_prefill(const Call& call, cudaStream_t stream) {
  return with_kernels(call, cudaErrorInvalidValue, [&](auto kernels) {
    const cudaError_t error = kernels.template commit<false>(call, stream);
    return error == cudaSuccess ? kernels.attend(call, stream) : error;
  });
}

cudaError_t launch_commit(Call& call, cudaStream_t stream) {
  const cudaError_t error = with_kernels(call, cudaErrorInvalidValue, [&](auto kernels) { return kernels.template commit<true>(call, stream); });
  call.state = call.state_out, call.norm = call.norm_out, call.window_key = call.window_key_out, call.window_value = call.window_value_out;
  call.length = call.workspace, call.pending = call.accepted = 0, call.variant = kAnyVariant;
  return error;
}

}  // namespace lineahead::cuda
