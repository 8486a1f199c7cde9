// Checks a call, chooses its kernel and enqueues it.
#include <cstdarg>
#include <cstdio>

#include "enqueue.cuh"
#include "prefill.h"
#include "step.cuh"
#include "stream_step.cuh"

namespace lineahead::cuda {

namespace {

struct Message {
  char* text;
  size_t size;

  int operator()(int code, const char* format, ...) const {
    va_list values;
    va_start(values, format);
    if (text && size) std::vsnprintf(text, size, format, values);
    va_end(values);
    return code;
  }
};

constexpr int kInvalid = 1, kUnsupported = 2, kFailed = 3;

size_t workspace_bytes(const Call& call) {
  return normalizes_rows(call.settings) ? (size_t)2 * 4 * call.batch * call.heads * call.nodes * call.value_dim : prefill_workspace(call);
}

int check(const Call& call, const Message& fail) {
  const Settings& s = call.settings;
  if (call.batch < 1 || call.nodes < 1 || call.shared < 1 || call.heads % call.shared)
    return fail(kInvalid, "batch %d, nodes %d, heads %d, key heads %d: impossible", call.batch, call.nodes, call.heads, call.shared);
  const struct { const char* name; int value, count; } choices[] = {
      {"local", s.local, kYoso + 1}, {"pattern", s.pattern, kSliding + 1}, {"map", s.map, kRfa + 1},
      {"normalizer", s.normalizer, kRms + 1}, {"normalizes", s.normalizes, kLocal + 1},
      {"local_norm", s.local_norm, 2}, {"qk_norm", s.qk_norm, 2}, {"type", call.type, kBFloat16 + 1}};
  for (const auto& one : choices)
    if (one.value < 0 || one.value >= one.count) return fail(kUnsupported, "%s %d: this library has no such thing", one.name, one.value);
  if (call.dim % 8 || call.value_dim % 8 || call.dim > kMaxDim)
    return fail(kUnsupported, "head dimensions %d and %d: multiples of 8 up to %d are supported", call.dim, call.value_dim, kMaxDim);
  const int features = has_projection(s.map) ? call.columns * (s.map == kPerformer ? 1 : 2) : call.dim;
  if (has_state(s) && (call.features != features || call.columns % 4))
    return fail(kUnsupported, "%d features of %d columns: the map has %d, and columns are multiples of 4", call.features, call.columns, features);
  if (s.window < 1 || s.taps < 0 || s.sinks < 0 || (s.local != kNoLocal && s.pattern == kNoPattern) ||
      (s.local == kNoLocal && s.pattern == kSliding))
    return fail(kInvalid, "window %d, conv_taps %d, sinks %d or local and pattern contradict each other", s.window, s.taps, s.sinks);
  if (workspace_bytes(call) && !call.workspace) return fail(kInvalid, "no workspace");
  if (!call.tickets) return fail(kInvalid, "no tickets");
  return 0;
}

// The device's limits, asked once.
const Device* device_limits(int* index) {
  constexpr int kMost = 64;
  static Device known[kMost] = {};
  if (cudaGetDevice(index) != cudaSuccess || *index >= kMost) return nullptr;
  Device& device = known[*index];
  if (!device.processors) {
    int processors = 0;
    if (cudaDeviceGetAttribute(&device.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, *index) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, *index) != cudaSuccess)
      return nullptr;
    device.processors = processors;
  }
  return &device;
}

template <typename T>
cudaError_t launch_step(const Call& call, const Layout& layout, cudaStream_t stream) {
  const void* kernel = rows_per_thread(call) == 1 ? reinterpret_cast<const void*>(step_kernel<1, T>)
                                                  : reinterpret_cast<const void*>(step_kernel<4, T>);
  const dim3 grid(layout.slices, layout.row_blocks, call.batch * call.shared);
  const cudaError_t error = enqueue(kernel, call, layout, grid, layout.bytes, stream);
  if (error != cudaSuccess || !normalizes_rows(call.settings)) return error;
  const dim3 rows((unsigned)(((size_t)call.batch * call.heads * call.nodes + kWarps - 1) / kWarps));
  return enqueue(reinterpret_cast<const void*>(normalize_kernel<T>), call, layout, rows, 0, stream);
}

template <int kSteps, typename T, typename Preset>
const void* stream_function(const Call& call) {
  const int rows = call.heads / call.shared * call.nodes;
  return rows == 1   ? reinterpret_cast<const void*>(stream_kernel<kSteps, 1, T, Preset>)
         : rows <= 8 ? reinterpret_cast<const void*>(stream_kernel<kSteps, 8, T, Preset>)
                     : reinterpret_cast<const void*>(stream_kernel<kSteps, 16, T, Preset>);
}

template <typename T>
const void* choose_stream(const Call& call) {
  if (FixedPreset<kHedgehog, 64>::matches(call)) return stream_function<2, T, FixedPreset<kHedgehog, 64>>(call);
  if (FixedPreset<kHedgehog, 128>::matches(call)) return stream_function<4, T, FixedPreset<kHedgehog, 128>>(call);
  if (FixedPreset<kIdentity, 64>::matches(call)) return stream_function<1, T, FixedPreset<kIdentity, 64>>(call);
  if (FixedPreset<kIdentity, 128>::matches(call)) return stream_function<2, T, FixedPreset<kIdentity, 128>>(call);
  const int steps = (call.features + 63) / 64;
  return steps <= 1   ? stream_function<1, T, AnyPreset>(call)
         : steps <= 2 ? stream_function<2, T, AnyPreset>(call)
         : steps <= 4 ? stream_function<4, T, AnyPreset>(call)
                      : stream_function<8, T, AnyPreset>(call);
}

template <typename T>
cudaError_t launch_stream(const Call& call, const Layout& layout, cudaStream_t stream) {
  return enqueue(choose_stream<T>(call), call, layout, dim3(layout.slices, layout.row_blocks, call.batch * call.shared), layout.bytes, stream);
}

}  // namespace

}  // namespace lineahead::cuda

using namespace lineahead::cuda;

extern "C" int lineahead_augmented_attention(const Call* call, void* stream, char* message, size_t message_size) {
  const Message fail{message, message_size};
  if (const int code = check(*call, fail)) return code;
  int index = 0;
  const Device* device = device_limits(&index);
  if (!device) return fail(kFailed, "no CUDA device");
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  const PrefillPart part = prefill_part(*call, device->shared_memory);
  Call rest = *call;
  if (part != PrefillPart::kNone) {
    const cudaError_t error = part == PrefillPart::kAll ? launch_prefill(*call, queue) : launch_commit(rest, queue);
    if (error != cudaSuccess) return fail(kFailed, "%s", cudaGetErrorString(error));
    if (part == PrefillPart::kAll) return 0;
    call = &rest;
  } else if (call->variant == kPrefill) {
    return fail(kUnsupported, "the prefill kernels do not serve this call");
  }
  const Layout streaming = call->variant == kStep ? Layout{} : make_stream_layout(*call, *device);
  if (streaming.bytes) {
    const cudaError_t error = call->type == kHalf ? launch_stream<__half>(*call, streaming, queue) : launch_stream<__nv_bfloat16>(*call, streaming, queue);
    return error == cudaSuccess ? 0 : fail(kFailed, "%s", cudaGetErrorString(error));
  }
  if (call->variant == kStream) return fail(kUnsupported, "the streaming kernel does not serve this call");
  const Layout layout = make_layout(*call, *device);
  if (!layout.bytes)
    return fail(kUnsupported, "window %d, conv_taps %d and %d nodes of dimension %d do not fit in %d bytes of shared memory",
                call->settings.window, call->settings.taps, call->nodes, call->dim, device->shared_memory);
  const cudaError_t error = call->type == kHalf       ? launch_step<__half>(*call, layout, queue)
                            : call->type == kBFloat16 ? launch_step<__nv_bfloat16>(*call, layout, queue)
                                                      : launch_step<float>(*call, layout, queue);
  return error == cudaSuccess ? 0 : fail(kFailed, "%s", cudaGetErrorString(error));
}

extern "C" size_t lineahead_ticket_count(const Call* call) {
  return (size_t)call->batch * call->shared * ((call->value_dim + 15) / 16 + 1);
}

extern "C" size_t lineahead_workspace_size(const Call* call) { return workspace_bytes(*call); }

extern "C" size_t lineahead_call_size(void) { return sizeof(Call); }
