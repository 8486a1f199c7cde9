// The deferred commit: fold what has left the window into S, and write the state back.
//
// Where outputs are the buffers of the inputs, a block may overwrite only what no other block will read. Every block says when it
// has read everything (`arrive`); the last one writes.
#pragma once

#include "block.cuh"
#include "feature_map.cuh"

namespace lineahead::cuda {

template <typename T>
__device__ void add_to_state(const Block<T>& block, const float* phi, const float* value, int rows) {
  const Call& call = block.call;
  const int slice = block.layout.slice, vectors = slice / 4, features = call.features;
  for (int unit = thread_index(); unit < features / 4 * vectors; unit += kThreads) {
    const int f = unit / vectors * 4, j = unit % vectors * 4;
    float* state = block.state() + (size_t)f * slice + j;
    float4 s0 = load4(state), s1 = load4(state + slice), s2 = load4(state + 2 * slice), s3 = load4(state + 3 * slice);
    for (int n = 0; n < rows; ++n) {
      const float4 p = load4(phi + (size_t)n * features + f), v = load4(value + (size_t)n * slice + j);
      add_scaled(s0, p.x, v), add_scaled(s1, p.y, v), add_scaled(s2, p.z, v), add_scaled(s3, p.w, v);
    }
    store4(state, s0), store4(state + slice, s1), store4(state + 2 * slice, s2), store4(state + 3 * slice, s3);
  }
  if (!block.has_norm()) return;
  for (int f = thread_index(); f < features; f += kThreads) {
    float sum = block.norm()[f];
    for (int n = 0; n < rows; ++n) sum += phi[(size_t)n * features + f];
    block.norm()[f] = sum;
  }
}

// Fold the positions that leave the window with this commit into the block's slice of S.
template <int kRows, typename T>
__device__ void fold(const Block<T>& block) {
  const Call& call = block.call;
  const Layout& layout = block.layout;
  float *row = block.floats(layout.row), *phi = block.floats(layout.phi), *value = block.floats(layout.fold_value);
  for (int start = block.plan.fold; start < block.plan.fold_end; start += layout.fold_tile) {
    const int rows = least(layout.fold_tile, block.plan.fold_end - start);
    for (int n = warp_index(); n < rows; n += kWarps) {
      const Source source = block.plan.in_ring(start + n);
      load_row(block.keys.at(source), call.dim, false, 0.0f, row + (size_t)n * call.dim);
      const T* from = block.values_at.at(source) + block.value_start;
      for (int j = lane_index() * 4; j < layout.slice; j += 4 * kLanes)
        store4(value + (size_t)n * layout.slice + j, j < block.values ? load4(from + j) : zero4());
    }
    sync_block();
    apply_map<kRows>(call, row, call.dim, rows, block.key_map(), block.partial(), phi, call.features);
    wait_copies();
    sync_block();
    add_to_state(block, phi, value, rows);
    sync_block();
  }
}

// Tell the other blocks that this one has read all of the old state and window that it needs. Afterwards flags[1] says whether
// this block writes its slice of the state, flags[2] whether it writes what slices share.
template <typename T>
__device__ void arrive(const Block<T>& block) {
  sync_block();
  if (thread_index() == 0) {
    const unsigned row_blocks = grid_size().y, slices = grid_size().x;
    unsigned* by_slice = block.call.tickets + block.head * (slices + 1);
    const bool mine = row_blocks == 1 || last_to_arrive(by_slice + block.slice, row_blocks);
    block.tables.flags[1] = mine;
    block.tables.flags[2] = mine && (slices == 1 || last_to_arrive(by_slice + slices, slices));
  }
  sync_block();
}

// Bring rows of a window up to date, columns [start, start + width) of each, 16 bytes at a time.
template <typename T>
__device__ void write_window(const Block<T>& block, const Rows<T>& rows, void* window_out, int start, int width) {
  const Plan& plan = block.plan;
  T* out = static_cast<T*>(window_out) + block.head * block.window_rows * rows.width;
  const bool in_place = out == rows.window;
  const int oldest = largest(plan.before, plan.total - plan.ring), fresh = plan.total - oldest;
  const int sinks = largest(least(plan.total, block.call.settings.sinks) - plan.before, 0);
  const int per_copy = 16 / sizeof(T), parts = width / per_copy, count = in_place ? fresh + sinks : block.window_rows;
  for (int i = thread_index(); i < count * parts; i += kThreads) {
    const int k = i / parts, column = start + i % parts * per_copy;
    int row = k, position;
    if (in_place) {
      position = k < fresh ? oldest + k : plan.before + k - fresh;
      row = k < fresh ? position % plan.ring : plan.ring + position;
    } else if (k < plan.ring) {  // the newest position of this row
      const int last = plan.total - 1;
      position = last < k ? -1 : last - (last - k) % plan.ring;
    } else {
      position = k - plan.ring < plan.total ? k - plan.ring : -1;
    }
    const Source source = position < plan.before ? Source{Home::kWindow, row} : plan.committed(position, row);
    *reinterpret_cast<uint4*>(out + (size_t)row * rows.width + column) =
        *reinterpret_cast<const uint4*>(rows.at(source) + column);
  }
}

template <typename T>
__device__ void write_state(const Block<T>& block, bool owns_slice, bool owns_head) {
  const Call& call = block.call;
  const bool folds = block.plan.fold_end > block.plan.fold, first = block_index().y == 0;
  if (block.has_state() && (call.state_out == call.state ? owns_slice && folds : first)) {
    const int vectors = block.values / 4;
    float* out = call.state_out + block.state_offset();
    for (int i = thread_index(); i < call.features * vectors; i += kThreads) {
      const int f = i / vectors, j = i % vectors * 4;
      store4(out + (size_t)f * call.value_dim + j, load4(block.state() + (size_t)f * block.layout.slice + j));
    }
  }
  const bool first_of_head = first && block.slice == 0;
  if (block.has_norm() && (call.norm_out == call.norm ? owns_head && folds : first_of_head))
    for (int f = thread_index(); f < call.features; f += kThreads) call.norm_out[block.head * call.features + f] = block.norm()[f];
  if (call.window_value_out == call.window_value ? owns_slice : first)
    write_window(block, block.values_at, call.window_value_out, block.value_start, block.values);
  if (call.window_key_out == call.window_key ? owns_head : first_of_head)
    write_window(block, block.keys, call.window_key_out, 0, call.dim);
}

}  // namespace lineahead::cuda
