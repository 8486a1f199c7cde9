// Calls of the fused operators on a GPU, by the names of schema.py. Plain C layout; outputs overlap nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lineahead::fusions {

enum Activation : int32_t { kSilu, kGeluTanh, kGelu };

// `type`, of `x` and `normed`, is a Type of the attention's call.h. Without a residual there is no `total`.
struct Norm {
  int32_t type, rows, width;
  float epsilon;
  const void* x;
  const float *residual, *weight;
  void* normed;
  float* total;
};

struct Rotary {
  int32_t type, batch, nodes, heads, shared, dim;
  const void* product;
  const float *cos, *sin;
  void *query, *key, *value;
};

struct Table {
  int32_t rows, half;
  const int32_t* positions;
  const float* frequencies;
  float *cos, *sin;
};

struct Gate {
  int32_t type, rows, width, activation;  // `width` is F
  const void* product;
  void* output;
};

}  // namespace lineahead::fusions

extern "C" {
// Enqueue a call on `stream` (a cudaStream_t). Returns 0, or an error code with `message` filled; nothing was enqueued then.
int lineahead_rms_norm(const lineahead::fusions::Norm* call, void* stream, char* message, size_t message_size);
int lineahead_rotary_heads(const lineahead::fusions::Rotary* call, void* stream, char* message, size_t message_size);
int lineahead_rotary_table(const lineahead::fusions::Table* call, void* stream, char* message, size_t message_size);
int lineahead_gated_unit(const lineahead::fusions::Gate* call, void* stream, char* message, size_t message_size);
}
