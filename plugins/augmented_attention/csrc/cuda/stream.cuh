// Decoding and verification of 16-bit models: what a block of the streaming kernel keeps, and how it gets it.
//
// A block serves one sequence and key/value head and `slice` columns of the value dimension. S goes from memory to registers and
// back, laid out as the tensor cores' operand; keys, values and queries stay 16 bits wide. Columns are the rows of the window as
// they lie, then the rows that this call accepts, then the nodes; `position` of a column that holds nothing is negative.
#pragma once

#include "block.cuh"

namespace lineahead::cuda {

template <typename T>
struct Stream {
  const Call& call;
  const Layout& layout;
  int b, g;
  size_t head;
  int value_start, values;
  int window_rows;
  char* shared;
  Plan plan;
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
        tables{integers(layout.position), integers(layout.source), integers(layout.far), integers(layout.node),
               reinterpret_cast<unsigned*>(integers(layout.ancestors)), integers(layout.flags), layout.words} {}

  __device__ float* floats(int offset) const { return reinterpret_cast<float*>(shared + offset); }
  __device__ int* integers(int offset) const { return reinterpret_cast<int*>(shared + offset); }
  __device__ T* keys() const { return reinterpret_cast<T*>(shared + layout.key); }
  __device__ T* values_at() const { return reinterpret_cast<T*>(shared + layout.value); }
  __device__ T* rows() const { return reinterpret_cast<T*>(shared + layout.row); }
  __device__ T* key(int c) const { return keys() + (size_t)c * layout.key_stride; }
  __device__ bool has_map() const { return has_state(call.settings); }
  __device__ int features() const { return has_map() ? call.features : 0; }
  __device__ int accepted() const { return plan.total - plan.before; }
  __device__ int count() const { return layout.first_node + call.nodes; }
  __device__ int column_of(int position) const {  // of a position that folds now
    return position < plan.before ? position % plan.ring : window_rows + position - plan.before;
  }
  __device__ int held(int c) const {  // position of a column before the nodes
    if (c < plan.ring) {
      const int last = plan.before - 1;
      return last < c ? -1 : last - (last - c) % plan.ring;
    }
    if (c < window_rows) return c - plan.ring < least(plan.before, call.settings.sinks) ? c - plan.ring : -1;
    return c - window_rows < accepted() ? plan.before + c - window_rows : -1;
  }
  __device__ bool is_sink_row(int c) const { return c >= plan.ring && c < window_rows; }
};

// One row of `dim` 16-bit numbers, 16 bytes a lane, L2-normalised if asked; by one warp.
template <typename T>
__device__ void stage_row(const T* from, int dim, bool normalise, float eps, T* to, T* publish) {
  const int d = lane_index() * 8;
  float4 low = zero4(), high = zero4();
  if (d < dim) low = load4(from + d), high = load4(from + d + 4);
  if (normalise) {
    const float inverse = 1 / sqrtf(lane_sum(dot(low, low, dot(high, high, 0))) + eps);
    low = scaled(inverse, low), high = scaled(inverse, high);
  }
  if (d >= dim) return;
  store4(to + d, low), store4(to + d + 4, high);
  if (publish) store4(publish + d, low), store4(publish + d + 4, high);
}

// Start copying rows [start, start + count) of `from` [rows, width], this block's columns of it, to columns of `to`.
template <typename T>
__device__ void copy_rows(const T* from, int width, int used, int count, T* to, int stride) {
  const int parts = (used + 7) / 8;
  for (int i = thread_index(); i < count * parts; i += kThreads) {
    const int r = i / parts, part = i % parts * 8;
    copy_async(to + (size_t)r * stride + part, from + (size_t)r * width + part);
  }
}

// Ask for everything that will be read at once, so that later loads find it in the second-level cache: a wait for memory that
// nothing overlaps takes a microsecond, as long as a small call may take in all.
__device__ inline void ask(const void* from, size_t bytes) {
  for (size_t at = (size_t)thread_index() * 128; at < bytes; at += kThreads * 128) prefetch(static_cast<const char*>(from) + at);
}

template <typename T>
__device__ void ask_for_operands(const Stream<T>& s) {
  const Call& call = s.call;
  const int group = call.heads / call.shared, first = s.g * group;
  const auto row = [](const void* base, size_t at) { return static_cast<const T*>(base) + at; };
  if (thread_index() == 0) {
    prefetch(row(call.alpha, first * call.alpha_step)), prefetch(row(call.local_scale, first * call.local_scale_step));
    if (call.settings.taps) prefetch(row(call.conv, (size_t)first * call.settings.taps));
    if (!call.chain) prefetch(static_cast<const char*>(call.ancestors) + (size_t)s.b * call.nodes * call.nodes * call.ancestor_bytes);
  }
  ask(row(call.query, ((size_t)s.b * call.heads + first) * call.nodes * call.dim), sizeof(T) * group * call.nodes * call.dim);
  ask(row(call.key, s.head * call.nodes * call.dim), sizeof(T) * call.nodes * call.dim);
  if (call.pending) {
    ask(row(call.pending_key, s.head * call.pending * call.dim), sizeof(T) * call.pending * call.dim);
    ask(row(call.pending_value, s.head * call.pending * call.value_dim), sizeof(T) * call.pending * call.value_dim);
  }
  if (has_norm(call.settings)) ask(call.norm + s.head * call.features, 4 * call.features);
  if (!has_projection(call.settings.map)) return;
  const size_t size = (size_t)call.dim * call.columns;
  ask(row(call.key_map, s.g * size), sizeof(T) * size);
  ask(row(call.query_map, first * size), sizeof(T) * size * group);
}

// The passes of S after the first.
template <typename T>
__device__ void ask_for_state(const Stream<T>& s) {
  if (!s.has_map() || s.layout.passes == 1) return;
  const int lines = (s.values - kPassColumns + 31) / 32;
  const float* from = s.call.state + s.head * s.call.features * s.call.value_dim + s.value_start + kPassColumns;
  for (int i = thread_index(); i < s.call.features * lines; i += kThreads) prefetch(from + (size_t)(i / lines) * s.call.value_dim + i % lines * 32);
}

// Window and nodes, which need no plan.
template <typename T>
__device__ void stage_window(const Stream<T>& s) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const T *window_key = static_cast<const T*>(call.window_key), *window_value = static_cast<const T*>(call.window_value);
  copy_rows(window_key + s.head * s.window_rows * call.dim, call.dim, call.dim, s.window_rows, s.keys(), layout.key_stride);
  copy_rows(window_value + s.head * s.window_rows * call.value_dim + s.value_start, call.value_dim, s.values, s.window_rows,
            s.values_at(), layout.value_stride);
  copy_rows(static_cast<const T*>(call.value) + s.head * call.nodes * call.value_dim + s.value_start, call.value_dim, s.values,
            call.nodes, s.values_at() + (size_t)layout.first_node * layout.value_stride, layout.value_stride);
}

// The accepted rows of the previous call.
template <typename T>
__device__ void stage_accepted(const Stream<T>& s) {
  const Call& call = s.call;
  const Layout& layout = s.layout;
  const int key_parts = call.dim / 8, parts = key_parts + s.values / 8;
  for (int i = thread_index(); i < s.accepted() * parts; i += kThreads) {
    const int r = i / parts, part = i % parts, column = s.window_rows + r;
    const size_t row = s.head * call.pending + s.plan.committed(s.plan.before + r, 0).row;
    if (part < key_parts)
      copy_async(s.key(column) + part * 8, static_cast<const T*>(call.pending_key) + row * call.dim + part * 8);
    else
      copy_async(s.values_at() + (size_t)column * layout.value_stride + (part - key_parts) * 8,
                 static_cast<const T*>(call.pending_value) + row * call.value_dim + s.value_start + (part - key_parts) * 8);
  }
}

// Positions of all columns, columns that some node sees through the feature map, and zeros for values of what holds nothing.
template <typename T>
__device__ void fill_columns(const Stream<T>& s) {
  const Layout& layout = s.layout;
  const int width = layout.value_stride / 8, first_node = layout.first_node;
  for (int c = thread_index(); c < layout.columns; c += kThreads)
    s.tables.position[c] = c < first_node ? s.held(c) : c < s.count() ? s.tables.node[c - first_node] : -1;
  for (int t = thread_index(); t < s.call.nodes; t += kThreads)
    s.integers(layout.start)[t] = local_start(s.call.settings, s.tables.node[t]);
  for (int i = thread_index(); i < layout.columns * width; i += kThreads) {
    const int c = i / width, part = i % width * 8;
    if (c >= first_node ? c < s.count() && part < s.values : s.held(c) >= 0 && part < s.values) continue;
    T* to = s.values_at() + (size_t)c * layout.value_stride + part;
    store4(to, zero4()), store4(to + 4, zero4());
  }
  sync_block();
  const int* starts = s.integers(layout.start);
  if (warp_index() || !s.has_map()) return;
  int end = 0, found = 0;
  for (int t = 0; t < s.call.nodes; ++t) end = largest(end, starts[t]);
  for (int base = 0; base < s.count(); base += kLanes) {
    const int c = base + lane_index();
    bool set = false;
    if (c < s.count() && !s.is_sink_row(c)) {
      const int position = s.tables.position[c];
      set = position >= (c < first_node ? s.plan.attended : s.call.settings.sinks) && position < end;
    }
    const unsigned bits = ballot(set);
    if (set) s.tables.far[found + bit_count(bits & ((1u << lane_index()) - 1))] = c;
    found += bit_count(bits);
  }
  if (lane_index() == 0) s.tables.flags[0] = found;
}

// What node t sees of column c.
template <typename T>
__device__ Sight sight(const Stream<T>& s, int t, int c) {
  const Settings& settings = s.call.settings;
  const int position = s.tables.position[c], node = c - s.layout.first_node;
  if (position < 0) return Sight::kNone;
  if (s.is_sink_row(c)) return Sight::kLocal;
  if (node >= 0 && !s.tables.is_ancestor(t, node)) return Sight::kNone;
  if (position < settings.sinks) return c < s.plan.ring ? Sight::kNone : Sight::kLocal;
  if (node < 0 && position < s.plan.attended) return Sight::kNone;
  if (position >= s.integers(s.layout.start)[t]) return Sight::kLocal;
  return s.has_map() ? Sight::kFar : Sight::kNone;
}

// Tap of the convolution by which node t weighs column c, or -1.
template <typename T>
__device__ int tap(const Stream<T>& s, int t, int c) {
  const int position = s.tables.position[c], node = c - s.layout.first_node, lag = s.tables.node[t] - position;
  if (position < 0 || s.is_sink_row(c) || lag < 0 || lag >= s.call.settings.taps) return -1;
  return node < 0 || s.tables.is_ancestor(t, node) ? lag : -1;
}

// Rows of a window as the commit leaves them, from the staged columns; `in_place`: only those that change.
template <typename T>
__device__ void put_window(const Stream<T>& s, const T* staged, int stride, T* out, int width, int used, bool in_place) {
  const Plan& plan = s.plan;
  const int parts = used / 8, oldest = largest(plan.before, plan.total - plan.ring), fresh = plan.total - oldest;
  const int sinks = largest(least(plan.total, s.call.settings.sinks) - plan.before, 0);
  const int count = in_place ? fresh + sinks : s.window_rows;
  for (int i = thread_index(); i < count * parts; i += kThreads) {
    const int k = i / parts, part = i % parts * 8;
    int row = k, column = k;
    if (in_place) {
      const int position = k < fresh ? oldest + k : plan.before + k - fresh;
      row = k < fresh ? position % plan.ring : plan.ring + position, column = s.window_rows + position - plan.before;
    } else {
      const int last = plan.total - 1;
      const int position = k >= plan.ring ? k - plan.ring : last < k ? -1 : last - (last - k) % plan.ring;
      if (position >= plan.before && position < plan.total) column = s.window_rows + position - plan.before;
    }
    *reinterpret_cast<uint4*>(out + (size_t)row * width + part) = *reinterpret_cast<const uint4*>(staged + (size_t)column * stride + part);
  }
}

}  // namespace lineahead::cuda
