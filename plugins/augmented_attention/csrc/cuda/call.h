// One call of the operator on a GPU: settings, sizes and device pointers, by the names of schema.py and step.step. Plain C layout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lineahead::cuda {

enum Local : int32_t { kNoLocal, kRelu2, kSoftmax, kYoso };
enum Pattern : int32_t { kNoPattern, kGrouped, kSliding };
enum Map : int32_t { kNoMap, kIdentity, kHedgehog, kElu1, kRelu, kPerformer, kRfa };
enum Normalizer : int32_t { kNoNormalizer, kDenominator, kL2, kRms };
enum Scope : int32_t { kAll, kGlobal, kLocal };  // `normalizes`
enum Type : int32_t { kFloat, kHalf, kBFloat16 };
enum Variant : int32_t { kAnyVariant, kStep, kStream, kPrefill };  // which kernel, for tests and timing; the launcher chooses for kAnyVariant

// schema.AttentionSettings and the node's `scale`. `floor` is the property of that name.
struct Settings {
  int32_t local, pattern, map, normalizer, normalizes, qk_norm, local_norm, window, taps, sinks;
  float eps, scale, floor;
};

// query .. pending_value and the parameters are of `type`; state and norm are float. A port that the settings leave unused is not
// read. An output may be the buffer of the input of the same name, save pending_key. `norm` is read and written where
// has_norm() of layout.h says so.
struct Call {
  Settings settings;
  int32_t type, index_bytes, ancestor_bytes;  // indices are int32 or int64, ancestors bool or int32
  int32_t batch, heads, shared, nodes, dim, value_dim, features, columns;  // B, H, Hkv, T, D, Dv, F, M (0 without a projection)
  int32_t pending, accepted;                                               // P, A
  int32_t alpha_step, local_scale_step;                                    // 0 when one number serves all heads
  int32_t slice;    // columns of the value dimension that a block works on, a power of two; 0 lets the launcher choose
  int32_t chain;    // 1: the caller knows `ancestors` to be lower triangles; it is not read, and long calls are prefilled
  int32_t variant;  // a Variant
  const void *query, *key, *value, *ancestors, *length, *accept_index, *accept_count;
  const float *state, *norm;
  const void *window_key, *window_value, *pending_key, *pending_value;
  const void *alpha, *local_scale, *conv, *query_map, *key_map;
  void* output;
  float *state_out, *norm_out;
  void *window_key_out, *window_value_out, *pending_key_out;
  uint32_t* tickets;  // ticket_count() counters, zero before the first call; every call leaves them zero
  void* workspace;    // workspace_size() bytes, 256-byte aligned, of any content; null when that is 0
};

}  // namespace lineahead::cuda

extern "C" {
// Enqueue `call` on `stream` (a cudaStream_t). Returns 0, or an error code with `message` filled; nothing was enqueued then.
int lineahead_augmented_attention(const lineahead::cuda::Call* call, void* stream, char* message, size_t message_size);
// How many counters `tickets` of such a call must have, at most, on any device.
size_t lineahead_ticket_count(const lineahead::cuda::Call* call);
// Bytes of `workspace` that such a call needs; pointers are not looked at, and more nodes or sequences never need less.
size_t lineahead_workspace_size(const lineahead::cuda::Call* call);
// sizeof(Call), for callers that lay it out themselves.
size_t lineahead_call_size(void);
}
