// What one block works on, and copying its share of the state and the window into shared memory.
#pragma once

#include "feature_map.cuh"
#include "plan.cuh"

namespace lineahead::cuda {

constexpr int kMaxDim = 256;

// The rows of one sequence and key/value head, in each place where a row can lie.
template <typename T>
struct Rows {
  const T *window, *pending, *nodes;
  int width;

  __device__ Rows(const void* window_rows, const void* pending_rows, const void* node_rows, size_t head, int window_count,
                  const Call& call, int row_width)
      : window(static_cast<const T*>(window_rows) + head * window_count * row_width),
        pending(static_cast<const T*>(pending_rows) + head * call.pending * row_width),
        nodes(static_cast<const T*>(node_rows) + head * call.nodes * row_width),
        width(row_width) {}

  __device__ const T* at(Source source) const {
    const T* base = source.home == Home::kWindow ? window : source.home == Home::kPending ? pending : nodes;
    return base + (size_t)source.row * width;
  }
};

template <typename T>
struct Block {
  const Call& call;
  const Layout& layout;
  int b, g, slice;
  size_t head;              // b * Hkv + g
  int window_rows;          // rows of window_key and window_value
  int value_start, values;  // this block's columns of the value dimension
  char* shared;
  Plan plan;
  Tables tables;
  Rows<T> keys, values_at;

  __device__ Block(const Call& call, const Layout& layout, int ring)
      : call(call),
        layout(layout),
        b(block_index().z / call.shared),
        g(block_index().z % call.shared),
        slice(block_index().x),
        head(block_index().z),
        window_rows(ring + call.settings.sinks),
        value_start(slice * layout.slice),
        values(least(layout.slice, call.value_dim - value_start)),
        shared(shared_memory()),
        plan(make_plan(call, ring, b)),
        tables{integers(layout.position), integers(layout.source), integers(layout.far), integers(layout.node),
               reinterpret_cast<unsigned*>(integers(layout.ancestors)), integers(layout.flags), layout.words},
        keys(call.window_key, call.pending_key, call.key, head, window_rows, call, call.dim),
        values_at(call.window_value, call.pending_value, call.value, head, window_rows, call, call.value_dim) {}

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ int* integers(int offset) const { return reinterpret_cast<int*>(shared + offset); }
  __device__ float* state() const { return floats(layout.state); }    // [F, slice]
  __device__ float* norm() const { return floats(layout.norm); }      // [F]
  __device__ float* weight() const { return floats(layout.weight); }  // [tile, weight_stride]: phi(q), then columns
  __device__ float* partial() const { return floats(layout.partial); }
  __device__ T* staged_keys() const { return reinterpret_cast<T*>(shared + layout.key); }
  __device__ T* staged_values() const { return reinterpret_cast<T*>(shared + layout.value); }  // [columns, slice]
  __device__ bool has_state() const { return call.settings.map != kNoMap; }
  __device__ bool has_norm() const { return lineahead::cuda::has_norm(call.settings); }
  __device__ int features() const { return has_state() ? call.features : 0; }
  __device__ const T* key_map() const { return static_cast<const T*>(call.key_map) + (size_t)g * call.dim * call.columns; }
  __device__ const T* query_map(int h) const {
    return static_cast<const T*>(call.query_map) + (size_t)h * call.dim * call.columns;
  }
  __device__ size_t state_offset() const { return head * call.features * call.value_dim + value_start; }
  __device__ const T* key_row(int c) const {
    return layout.key_stride ? staged_keys() + (size_t)c * layout.key_stride : keys.at(Source::unpack(tables.source[c]));
  }
};

// Start copying the state's slice and the norm.
template <typename T>
__device__ void fetch_state(const Block<T>& block) {
  const Call& call = block.call;
  if (!block.has_state()) return;
  const int vectors = block.layout.slice / 4;
  const float* from = call.state + block.state_offset();
  for (int i = thread_index(); i < call.features * vectors; i += kThreads) {
    const int f = i / vectors, j = i % vectors * 4;
    float* to = block.state() + i * 4;
    if (j < block.values)
      copy_async(to, from + (size_t)f * call.value_dim + j);
    else
      store4(to, zero4());
  }
  if (!block.has_norm()) return;
  for (int i = thread_index() * 4; i < call.features; i += kThreads * 4)
    copy_async(block.norm() + i, call.norm + block.head * call.features + i);
}

// Bring the projections that this block will read into the second-level cache.
template <typename T>
__device__ void fetch_maps(const Block<T>& block) {
  const Call& call = block.call;
  if (!has_projection(call.settings.map)) return;
  const int group = call.heads / call.shared, step = 128 / sizeof(T), size = call.dim * call.columns;
  for (int i = thread_index() * step; i < size; i += kThreads * step) prefetch(block.key_map() + i);
  for (int i = thread_index() * step; i < size * group; i += kThreads * step) prefetch(block.query_map(block.g * group) + i);
}

// Start copying the columns' keys and values as the commit leaves them; does not need the tables.
template <typename T>
__device__ void fetch_columns(const Block<T>& block) {
  const int count = block.plan.columns(), per_copy = 16 / sizeof(T);
  if (block.layout.key_stride) {
    const int parts = block.call.dim / per_copy;
    for (int i = thread_index(); i < count * parts; i += kThreads) {
      const int c = i / parts, part = i % parts * per_copy;
      copy_async(block.staged_keys() + (size_t)c * block.layout.key_stride + part, block.keys.at(block.plan.column(c)) + part);
    }
  }
  const int slice = block.layout.slice, parts = slice / per_copy;
  for (int i = thread_index(); i < round_up(count, 4) * parts; i += kThreads) {
    const int c = i / parts, part = i % parts * per_copy;
    T* to = block.staged_values() + (size_t)c * slice + part;
    if (c < count && part < block.values)
      copy_async(to, block.values_at.at(block.plan.column(c)) + block.value_start + part);
    else
      for (int k = 0; k < per_copy; ++k) to[k] = from_float<T>(0);
  }
}

// Ports that the settings leave unused pass through.
__device__ inline void pass_unused(const Call& call) {
  const uint3 block = block_index();
  if (thread_index() || block.x || block.y || block.z) return;
  if (!has_state(call.settings) && call.state_out && call.state_out != call.state) *call.state_out = *call.state;
  if (!has_norm(call.settings) && call.norm_out && call.norm_out != call.norm) *call.norm_out = *call.norm;
}

// Copy one row of `dim` numbers to shared memory as float, L2-normalised and rounded to T if asked; by one warp.
template <typename T>
__device__ void load_row(const T* from, int dim, bool normalise, float eps, float* to) {
  float4 v[kMaxDim / (4 * kLanes)];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kMaxDim / (4 * kLanes); ++i) {
    const int d = (i * kLanes + lane_index()) * 4;
    v[i] = d < dim ? load4(from + d) : zero4();
    squares = dot(v[i], v[i], squares);
  }
  const float inverse = normalise ? 1 / sqrtf(lane_sum(squares) + eps) : 1;
#pragma unroll
  for (int i = 0; i < kMaxDim / (4 * kLanes); ++i) {
    const int d = (i * kLanes + lane_index()) * 4;
    if (d < dim) store4(to + d, normalise ? rounded<T>(scaled(inverse, v[i])) : v[i]);
  }
}

}  // namespace lineahead::cuda
