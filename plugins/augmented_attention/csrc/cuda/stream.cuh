// Decoding and verification of 16-bit models: what a block of the streaming kernel keeps, and how it gets it.
//
// A block serves one sequence and key/value head and `slice` columns of the value dimension. S goes from memory to registers and
// back; keys, values and queries stay 16 bits wide. Columns are the rows of the window as they lie, then the rows that this call
// accepts, then the nodes; `position` of a column that holds nothing is negative.
//
// A short call lasts as long as the instructions of one warp take to issue, so loops are not unrolled and nothing is divided that
// can be shifted.
#pragma once

#include "block.cuh"

namespace lineahead::cuda {

// Keys that need features, in order: `folds` that the commit folds, then those that a node may see outside its group or window,
// by position from `begin` on; `nodes` (all or none) of this call's last.
struct KeyList {
  int begin, begin_row, folds, positions, nodes;

  __device__ int count() const { return positions + nodes; }
};

// Query rows [start, start + count) of the block's heads.
struct QueryTile {
  int start, count, nodes, first_head;

  __device__ int head(int i) const { return nodes == 1 ? first_head + start + i : first_head + (start + i) / nodes; }
  __device__ int node(int i) const { return nodes == 1 ? 0 : (start + i) % nodes; }
};

template <typename T>
struct Stream {
  const Call& call;
  const Layout& layout;
  int b, g;
  size_t head;
  int value_start, values;
  int window_rows;
  int last_row;  // ring row of the last token committed before
  char* shared;
  Plan plan;
  KeyList list;
  Tables tables;

  __device__ Stream(const Call& call, const Layout& layout, int ring)
      : call(call),
        layout(layout),
        b(block_index().z / call.shared),
        g(block_index().z % call.shared),
        head(block_index().z),
        value_start(block_index().x * layout.slice),
        values(least(layout.slice, call.value_dim - value_start)),
        window_rows(ring + call.settings.sinks),
        shared(shared_memory()),
        plan{ring},
        tables{integers(layout.position), nullptr, nullptr, integers(layout.node),
               reinterpret_cast<unsigned*>(integers(layout.ancestors)), integers(layout.flags), layout.words} {}

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ int* integers(int offset) const { return reinterpret_cast<int*>(shared + offset); }
  __device__ T* keys() const { return reinterpret_cast<T*>(shared + layout.key); }
  __device__ T* values_at() const { return reinterpret_cast<T*>(shared + layout.value); }
  __device__ T* rows() const { return reinterpret_cast<T*>(shared + layout.row); }
  __device__ T* key(int c) const { return keys() + c * layout.key_stride; }
  __device__ T* value(int c) const { return values_at() + c * layout.value_stride; }
  __device__ T* row(int i) const { return rows() + i * layout.row_stride; }
  __device__ float* phi(int n) const { return floats(layout.phi) + n * layout.phi_stride; }
  __device__ float* phi_query(int i) const { return floats(layout.phi_query) + i * layout.phi_stride; }
  __device__ float* weight(int i) const { return floats(layout.weight) + i * layout.weight_stride; }
  __device__ bool has_map() const { return has_state(call.settings); }
  __device__ int features() const { return has_map() ? call.features : 0; }
  __device__ int accepted() const { return plan.total - plan.before; }
  __device__ int count() const { return layout.first_node + call.nodes; }
  __device__ bool is_sink_row(int c) const { return c >= plan.ring && c < window_rows; }

  // Plan, list of keys.
  __device__ void open(int before, int accepted) {
    const int ring = plan.ring;
    plan = make_plan(call, ring, b, before, accepted);
    last_row = plan.before ? (unsigned)(plan.before - 1) % ring : -1;
    list.folds = has_map() ? largest(plan.fold_end - plan.fold, 0) : 0;
    list.begin = list.folds ? plan.fold : plan.attended;
    list.begin_row = (unsigned)list.begin % ring;
    const int end = local_start(call.settings, plan.total + call.nodes - 1);
    list.positions = has_map() ? list.folds + largest(least(end, plan.total) - plan.attended, 0) : 0;
    list.nodes = has_map() && end > plan.total ? call.nodes : 0;
  }
  // Column of the n-th key that needs features.
  __device__ int listed(int n) const {
    if (n >= list.positions) return layout.first_node + n - list.positions;
    if (list.begin + n >= plan.before) return window_rows + list.begin + n - plan.before;
    const int row = list.begin_row + n;
    return row < plan.ring ? row : row - plan.ring;
  }
  __device__ int held(int c) const {  // position of a column before the nodes
    if (c < plan.ring) return last_row < 0 ? -1 : plan.before - 1 - last_row + c - (c > last_row ? plan.ring : 0);
    if (c < window_rows) return c - plan.ring < least(plan.before, call.settings.sinks) ? c - plan.ring : -1;
    return c - window_rows < accepted() ? plan.before + c - window_rows : -1;
  }
};

// Start copying rows of `from` [count, width], `used` numbers of each, to rows of `to`; 1 << shift is no less than used / 8.
template <typename T>
__device__ __forceinline__ void copy_rows(const T* from, int width, int used, int shift, int count, T* to, int stride) {
#pragma unroll 1
  for (int i = thread_index(); i < count << shift; i += kThreads) {
    const int r = i >> shift, part = (i - (r << shift)) * 8;
    if (part < used) copy_async(to + r * stride + part, from + (size_t)r * width + part);
  }
}

// Queries of the tile.
template <typename T>
__device__ void stage_queries(const Stream<T>& s, const QueryTile& tile) {
  const Call& call = s.call;
  const size_t first = ((size_t)s.b * call.heads + tile.first_head) * call.nodes + tile.start;
  copy_rows(static_cast<const T*>(call.query) + first * call.dim, call.dim, call.dim, s.layout.key_shift, tile.count, s.rows(), s.layout.row_stride);
}

// Everything whose place does not depend on the plan.
template <typename T>
__device__ void stage_columns(const Stream<T>& s, const QueryTile& tile) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const int dim = call.dim, wide = call.value_dim, first = layout.first_node;
  const T *keys = static_cast<const T*>(call.key) + s.head * call.nodes * dim;
  const T *values = static_cast<const T*>(call.value) + s.head * call.nodes * wide + s.value_start;
  const T *window_keys = static_cast<const T*>(call.window_key) + s.head * s.window_rows * dim;
  const T *window_values = static_cast<const T*>(call.window_value) + s.head * s.window_rows * wide + s.value_start;
  stage_queries(s, tile);
  copy_rows(keys, dim, dim, layout.key_shift, call.nodes, s.key(first), layout.key_stride);
  copy_rows(values, wide, s.values, layout.value_shift, call.nodes, s.value(first), layout.value_stride);
  copy_rows(window_keys, dim, dim, layout.key_shift, s.window_rows, s.keys(), layout.key_stride);
  copy_rows(window_values, wide, s.values, layout.value_shift, s.window_rows, s.values_at(), layout.value_stride);
  if (!call.chain) {  // read when positions are known
    const int bytes = call.nodes * call.nodes * call.ancestor_bytes;
    if (thread_index() * 128 < bytes) prefetch(static_cast<const char*>(call.ancestors) + s.b * bytes + thread_index() * 128);
  }
  if (!has_norm(call.settings)) return;
#pragma unroll 1
  for (int f = thread_index() * 4; f < call.features; f += kThreads * 4)
    copy_async(s.floats(layout.norm) + f, call.norm + s.head * call.features + f);
}

// Rows that this call may accept; a warp takes a row.
template <typename T>
__device__ void stage_pending(const Stream<T>& s) {
  const Call& call = s.call;
  const int key_parts = call.dim / 8, parts = key_parts + s.values / 8;
  const char* index = static_cast<const char*>(call.accept_index) + (size_t)s.b * call.accepted * call.index_bytes;
#pragma unroll 1
  for (int r = warp_index(); r < (call.pending ? call.accepted : 0); r += kWarps) {
    const int from = read_index(index, call.index_bytes, r), c = s.window_rows + r;
    const size_t row = s.head * call.pending + largest(least(from, call.pending - 1), 0);
    const T *key = static_cast<const T*>(call.pending_key) + row * call.dim;
    const T *value = static_cast<const T*>(call.pending_value) + row * call.value_dim + s.value_start;
#pragma unroll 1
    for (int part = lane_index(); part < parts; part += kLanes)
      if (part < key_parts)
        copy_async(s.key(c) + part * 8, key + part * 8);
      else
        copy_async(s.value(c) + (part - key_parts) * 8, value + (part - key_parts) * 8);
  }
}

// alpha, local_scale and the filter of each of the block's heads, to `gain`.
template <typename T>
__device__ void stage_gains(const Stream<T>& s) {
  const Call& call = s.call;
  const int group = call.heads / call.shared, width = 2 + call.settings.taps;
#pragma unroll 1
  for (int i = warp_index(); i < group; i += kWarps) {
    const int h = s.g * group + i;
#pragma unroll 1
    for (int j = lane_index(); j < width; j += kLanes) {
      const void* base = j == 0 ? call.alpha : j == 1 ? call.local_scale : call.conv;
      const size_t at = j == 0 ? h * call.alpha_step : j == 1 ? h * call.local_scale_step : (size_t)h * call.settings.taps + j - 2;
      s.floats(s.layout.gain)[i * width + j] = to_float(static_cast<const T*>(base)[at]);
    }
  }
}

// Rows of `to` to unit length, in place; by one warp each.
template <typename T>
__device__ __forceinline__ void unit_rows(T* rows, int stride, int count, int dim, float eps) {
  const int d = lane_index() * 8;
#pragma unroll 1
  for (int i = warp_index(); i < count; i += kWarps) {
    T* row = rows + i * stride + d;
    float4 low = zero4(), high = zero4();
    if (d < dim) low = load4(row), high = load4(row + 4);
    const float inverse = 1 / sqrtf(lane_sum(dot(low, low, dot(high, high, 0))) + eps);
    if (d < dim) store4(row, scaled(inverse, low)), store4(row + 4, scaled(inverse, high));
  }
}

// Position of every column; zeros for values of what holds nothing.
template <typename T>
__device__ void fill_columns(const Stream<T>& s) {
  const Layout& layout = s.layout;
  const int first_node = layout.first_node;
#pragma unroll 1
  for (int c = thread_index(); c < layout.columns; c += kThreads) {
    const int position = c < first_node ? s.held(c) : c < s.count() ? s.tables.node[c - first_node] : -1;
    s.tables.position[c] = position;
    if (c >= first_node && c < s.count()) s.integers(layout.start)[c - first_node] = local_start(s.call.settings, position);
    if (position >= 0) continue;
#pragma unroll 1
    for (int part = 0; part < layout.slice; part += 8) *reinterpret_cast<uint4*>(s.value(c) + part) = uint4{0, 0, 0, 0};
  }
}

// What node t, whose group or window starts at `start`, sees of column c.
template <typename T>
__device__ __forceinline__ Sight sight(const Stream<T>& s, int t, int start, int c, int position) {
  const Settings& settings = s.call.settings;
  const int node = c - s.layout.first_node;
  if (position < 0) return Sight::kNone;
  if (s.is_sink_row(c)) return Sight::kLocal;
  if (node >= 0 && !s.tables.is_ancestor(t, node)) return Sight::kNone;
  if (position < settings.sinks) return c < s.plan.ring ? Sight::kNone : Sight::kLocal;
  if (node < 0 && position < s.plan.attended) return Sight::kNone;
  if (position >= start) return Sight::kLocal;
  return s.has_map() ? Sight::kFar : Sight::kNone;
}

// Tap of the convolution by which node t weighs column c, or -1.
template <typename T>
__device__ __forceinline__ int tap(const Stream<T>& s, int t, int c, int position) {
  const int node = c - s.layout.first_node, lag = s.tables.node[t] - position;
  if (position < 0 || s.is_sink_row(c) || lag < 0 || lag >= s.call.settings.taps) return -1;
  return node < 0 || s.tables.is_ancestor(t, node) ? lag : -1;
}

}  // namespace lineahead::cuda
